"""The union of all solvers."""

from typing import Annotated

from pydantic import Field

from models.diffusion.solvers.analytic_dpm import AnalyticDPM
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.ddpm import DDPM
from models.diffusion.solvers.dpm_solver_2 import DPMSolver2
from models.diffusion.solvers.dpm_solver_3 import DPMSolver3
from models.diffusion.solvers.dpm_solver_pp_2m import DPMSolverPP2M
from models.diffusion.solvers.dpm_solver_pp_2s import DPMSolverPP2S
from models.diffusion.solvers.dpm_solver_pp_3m import DPMSolverPP3M
from models.diffusion.solvers.dpm_solver_pp_sde import DPMSolverPPSDE
from models.diffusion.solvers.euler import Euler
from models.diffusion.solvers.euler_ancestral import EulerAncestral
from models.diffusion.solvers.heun import Heun
from models.diffusion.solvers.predictor_corrector import PredictorCorrector
from models.diffusion.solvers.unipc import UniPC

SolverConfig = Annotated[
    DDPM
    | DDIM
    | Euler
    | EulerAncestral
    | Heun
    | DPMSolver2
    | DPMSolver3
    | DPMSolverPP2M
    | DPMSolverPP2S
    | DPMSolverPP3M
    | DPMSolverPPSDE
    | UniPC
    | PredictorCorrector
    | AnalyticDPM,
    Field(discriminator="kind"),
]
