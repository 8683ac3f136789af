"""Error of every solver against network calls:  .venv/bin/python docs/make_solvers.py

Needs matplotlib (the `tracking` extra brings it). A mixture of three gaussians in the plane, whose
best denoiser is known: no network, no data, a minute on one core. Writes
docs/images/solvers-error.png and prints the table of docs/diffusion.md.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch

from models.diffusion.schedules.ve_schedule import EDMSchedule
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.dpm_solver_2 import DPMSolver2
from models.diffusion.solvers.dpm_solver_3 import DPMSolver3
from models.diffusion.solvers.dpm_solver_pp_2m import DPMSolverPP2M
from models.diffusion.solvers.dpm_solver_pp_2s import DPMSolverPP2S
from models.diffusion.solvers.dpm_solver_pp_3m import DPMSolverPP3M
from models.diffusion.solvers.heun import Heun
from models.diffusion.solvers.times import uniform_times
from models.diffusion.solvers.unipc import UniPC

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models" / "diffusion"))
matplotlib.use("Agg")
from closed_forms import Mixture, MixtureDenoiser
from matplotlib import pyplot

SCHEDULE = EDMSchedule()
SOLVERS = {
    "DDIM = Euler": DDIM(),
    "Heun": Heun(),
    "DPM-Solver-2": DPMSolver2(),
    "DPM-Solver-3": DPMSolver3(),
    "DPM-Solver++(2S)": DPMSolverPP2S(),
    "DPM-Solver++(2M)": DPMSolverPP2M(),
    "DPM-Solver++(3M)": DPMSolverPP3M(),
    "DPM-Solver++(3M), released": DPMSolverPP3M(released=True),
    "UniPC-1": UniPC(points=1),
    "UniPC-2": UniPC(points=2),
    "UniPC-3": UniPC(points=3),
}
CALLS = (6, 12, 18, 24, 36, 48, 72, 96, 144, 192, 288, 384, 576)
Denoise = Callable[[torch.Tensor, torch.Tensor, object], object]


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Denoise) -> None:
        self._denoiser, self.calls = denoiser, 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: object) -> object:
        self.calls += 1
        return self._denoiser(x, t, condition)


def numbers(*values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plot the error of solvers against calls.")
    target = Path(__file__).parent / "images" / "solvers-error.png"
    parser.add_argument("--out", type=Path, default=target, help="where the figure goes")
    out = parser.parse_args().out
    data = Mixture(
        numbers([-1.0, 0.2], [0.8, 0.9], [0.4, -1.0]),
        numbers(0.3, 0.5, 0.4),
        numbers(0.3, 0.5, 0.2),
    )
    rng = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(256, 2, generator=rng, dtype=torch.float64)
    denoiser = MixtureDenoiser(data, SCHEDULE)
    truth = DPMSolver3().solve(SCHEDULE, denoiser, x, uniform_times(6000), None, rng)
    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    print("| solver | declared | measured |\n|---|---|---|")
    for index, (name, solver) in enumerate(SOLVERS.items()):
        style = "o-" if index < 8 else "s--"
        calls, errors = [], []
        for steps in CALLS:
            counted = Counted(denoiser)
            got = solver.solve(SCHEDULE, counted, x, uniform_times(steps), None, rng)
            calls.append(counted.calls)
            errors.append(float((got - truth).square().mean().sqrt()))
        axes.loglog(calls, errors, style, markersize=3, label=name)
        slope = math.log2(errors[-3] / errors[-1])
        print(f"| {name} | {solver.order} | {slope:.2f} |")
    axes.set_xlabel("network calls")
    axes.set_ylabel("root mean square error of x")
    axes.set_title("Karras' levels 80 to 0.002, mixture of three gaussians")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=110)
    print(out)


if __name__ == "__main__":
    main()
