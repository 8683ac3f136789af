"""Every solver as a setting: its kind and its options, built for a schedule."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.analytic_dpm import AnalyticDPM
from models.diffusion.solvers.churn import Churn
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


class DDPMConfig(BaseModel, frozen=True, extra="forbid"):
    """Ancestral sampling; a network that learns its variance overrules `variance`."""

    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["smallest", "largest"] = "smallest"

    def build(self, schedule: Schedule) -> DDPM:
        """The solver."""
        return DDPM(schedule, self.variance)

    def steered(
        self, schedule: Schedule, gradient: Callable[[Tensor, Tensor], Tensor] | None
    ) -> DDPM:
        """The solver with its mean moved by variance x gradient (arXiv 2105.05233, alg. 1)."""
        return DDPM(schedule, self.variance, gradient)


class DDIMConfig(BaseModel, frozen=True, extra="forbid"):
    """Deterministic with eta 0, ancestral with eta 1."""

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(default=0.0, ge=0)

    def build(self, schedule: Schedule) -> DDIM:
        """The solver."""
        return DDIM(schedule, self.eta)


class ChurnConfig(BaseModel, frozen=True, extra="forbid"):
    """New noise before steps (EDM): `amount` in all, at noise levels in [low, high]."""

    amount: float = Field(default=0.0, ge=0)
    low: float = Field(default=0.0, ge=0)
    high: float | None = Field(default=None, gt=0)
    noise: float = Field(default=1.0, gt=0)

    def build(self) -> Churn:
        """The churn."""
        high = math.inf if self.high is None else self.high
        return Churn(self.amount, self.low, high, self.noise)


class EulerConfig(BaseModel, frozen=True, extra="forbid"):
    """Euler's method on the probability-flow ODE."""

    kind: Literal["euler"] = "euler"
    churn: ChurnConfig = ChurnConfig()

    def build(self, schedule: Schedule) -> Euler:
        """The solver."""
        return Euler(schedule, self.churn.build())


class EulerAncestralConfig(BaseModel, frozen=True, extra="forbid"):
    """Euler steps that overshoot, then noise."""

    kind: Literal["euler_ancestral"] = "euler_ancestral"
    eta: float = Field(default=1.0, ge=0)

    def build(self, schedule: Schedule) -> EulerAncestral:
        """The solver."""
        return EulerAncestral(schedule, self.eta)


class HeunConfig(BaseModel, frozen=True, extra="forbid"):
    """Heun's method (EDM): two calls a step."""

    kind: Literal["heun"] = "heun"
    churn: ChurnConfig = ChurnConfig()

    def build(self, schedule: Schedule) -> Heun:
        """The solver."""
        return Heun(schedule, self.churn.build())


class DPMSolver2Config(BaseModel, frozen=True, extra="forbid"):
    """DPM-Solver-2, singlestep."""

    kind: Literal["dpm_solver_2"] = "dpm_solver_2"

    def build(self, schedule: Schedule) -> DPMSolver2:
        """The solver."""
        return DPMSolver2(schedule)


class DPMSolver3Config(BaseModel, frozen=True, extra="forbid"):
    """DPM-Solver-3, singlestep."""

    kind: Literal["dpm_solver_3"] = "dpm_solver_3"

    def build(self, schedule: Schedule) -> DPMSolver3:
        """The solver."""
        return DPMSolver3(schedule)


class DPMSolverPP2MConfig(BaseModel, frozen=True, extra="forbid"):
    """DPM-Solver++(2M), multistep."""

    kind: Literal["dpm_solver_pp_2m"] = "dpm_solver_pp_2m"

    def build(self, schedule: Schedule) -> DPMSolverPP2M:
        """The solver."""
        return DPMSolverPP2M(schedule)


class DPMSolverPP2SConfig(BaseModel, frozen=True, extra="forbid"):
    """DPM-Solver++(2S), singlestep."""

    kind: Literal["dpm_solver_pp_2s"] = "dpm_solver_pp_2s"

    def build(self, schedule: Schedule) -> DPMSolverPP2S:
        """The solver."""
        return DPMSolverPP2S(schedule)


class DPMSolverPP3MConfig(BaseModel, frozen=True, extra="forbid"):
    """DPM-Solver++(3M), multistep; `released` repeats the released code's coefficient."""

    kind: Literal["dpm_solver_pp_3m"] = "dpm_solver_pp_3m"
    released: bool = False

    def build(self, schedule: Schedule) -> DPMSolverPP3M:
        """The solver."""
        return DPMSolverPP3M(schedule, released=self.released)


class DPMSolverPPSDEConfig(BaseModel, frozen=True, extra="forbid"):
    """SDE-DPM-Solver++, of points 1 or 2 (the 2M)."""

    kind: Literal["dpm_solver_pp_sde"] = "dpm_solver_pp_sde"
    points: Literal[1, 2] = 2

    def build(self, schedule: Schedule) -> DPMSolverPPSDE:
        """The solver."""
        return DPMSolverPPSDE(schedule, slope=self.points == 2)


class UniPCConfig(BaseModel, frozen=True, extra="forbid"):
    """UniPC of `points` guesses: of order points + 1."""

    kind: Literal["unipc"] = "unipc"
    points: Literal[1, 2, 3] = 2

    def build(self, schedule: Schedule) -> UniPC:
        """The solver."""
        return UniPC(schedule, self.points)


class PredictorCorrectorConfig(BaseModel, frozen=True, extra="forbid"):
    """Reverse diffusion with `corrections` Langevin steps a time."""

    kind: Literal["predictor_corrector"] = "predictor_corrector"
    corrections: int = Field(default=1, ge=0)
    snr: float = Field(default=0.16, gt=0)

    def build(self, schedule: Schedule) -> PredictorCorrector:
        """The solver."""
        return PredictorCorrector(schedule, self.corrections, self.snr)


class AnalyticDPMConfig(BaseModel, frozen=True, extra="forbid"):
    """Analytic-DPM: ancestral with the best variance, from moments estimated on data."""

    kind: Literal["analytic_dpm"] = "analytic_dpm"
    moments: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """E|noise|^2 / d at the time each step starts from: `analytic_dpm.noise_moments`."""

    def build(self, schedule: Schedule) -> AnalyticDPM:
        """The solver.

        Raises:
            ValueError: no moments yet; they depend on the data, the network and the times.
        """
        if self.moments is None:
            raise ValueError("analytic_dpm needs moments, estimated on data for its times")
        return AnalyticDPM(schedule, self.moments)


SolverConfig = Annotated[
    DDPMConfig
    | DDIMConfig
    | EulerConfig
    | EulerAncestralConfig
    | HeunConfig
    | DPMSolver2Config
    | DPMSolver3Config
    | DPMSolverPP2MConfig
    | DPMSolverPP2SConfig
    | DPMSolverPP3MConfig
    | DPMSolverPPSDEConfig
    | UniPCConfig
    | PredictorCorrectorConfig
    | AnalyticDPMConfig,
    Field(discriminator="kind"),
]
