"""Every solver in few steps on a trained model:  .venv/bin/python docs/make_few_steps.py RUN SET

Samples images of the held-out captions of SET from the caption model in RUN (for instance
runs/quickstart/base and data/emoji) by every solver, each image from the same noise, at growing
numbers of network calls. Plots the Frechet distance of EfficientNet-Lite0 features to the real
images of those captions, and, of solvers that add no noise, how far their images are from the
ones that very many steps make of the same noise. Needs matplotlib (the `tracking` extra); a quarter
of an hour on one core. Writes docs/images/sampling-few-steps.png and prints the tables of
docs/sampling.md.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from evaluation.metrics import fid
from evaluation.metrics.features import EfficientNetLite0, FeatureNetwork
from launch.sampling.inputs import InputImages, images_of_set
from mezzotint.inference.config import DiffusionSystem
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.images import to_bytes
from mezzotint.inference.model_lookup import find_model
from mezzotint.inference.runtime import Runtime
from models.diffusion.sampling import DiffusionSampling

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator

PLAIN = (
    *("ddim", "euler", "heun", "dpm_solver_2", "dpm_solver_3", "dpm_solver_pp_2m"),
    *("dpm_solver_pp_2s", "dpm_solver_pp_3m", "unipc"),
)
NOISY = ("ddpm", "euler_ancestral", "dpm_solver_pp_sde", "predictor_corrector", "analytic_dpm")
CALLS = (4, 8, 12, 20)
LIMIT = DiffusionSampling.model_validate({"solver": {"kind": "dpm_solver_pp_2m"}, "steps": 200})
BATCH, MOMENTS = 120, 60


@dataclass(frozen=True)
class Point:
    """One solver at one number of calls; `error` is None for solvers that add noise."""

    calls: int
    distance: float
    error: float | None


@dataclass(frozen=True)
class Floors:
    """Distances to read the others by."""

    limit: float
    """The same captions and noise in 200 steps."""
    training: float
    """As many training images."""
    halves: float
    """The real images themselves, one half against the other: half as many, so biased more."""


@dataclass(frozen=True)
class Bench:
    """Model, prompts and metric."""

    generator: DiffusionGenerator
    prompts: tuple[Prompt, ...]
    network: FeatureNetwork
    real: fid.Gaussian
    training: InputImages

    def under(self, sampling: DiffusionSampling) -> DiffusionGenerator:
        """The generator under another sampling."""
        system = self.generator.config.model_copy(update={"sampling": sampling})
        return replace(self.generator, config=system)

    def generate(self, generator: DiffusionGenerator) -> tuple[Tensor, int]:
        """Images (N, H, W, 3) uint8 and the network evaluations for each."""
        result = generator.generate(GenerationRequest(self.prompts, batch_size=BATCH))
        assert result.nfe is not None
        return result.images[:, 0], result.nfe.network

    def distance(self, images: Tensor) -> float:
        """To the real images."""
        return fid.frechet_distance(fid.fit(self.network(images)), self.real)

    def solved_by(self, solver: str, calls: int) -> DiffusionGenerator:
        """The solver at its default times, with steps of `calls` network evaluations."""
        twice = solver in ("heun", "predictor_corrector")
        sampling = DiffusionSampling.model_validate(
            {"solver": {"kind": solver}, "steps": calls // 2 if twice else calls}
        )
        chosen = self.under(sampling)
        if solver != "analytic_dpm":
            return chosen
        prompts = [Prompt(caption) for caption in self.training.captions[:MOMENTS]]
        rng = torch.Generator().manual_seed(0)
        return chosen.with_analytic_moments(self.training.images[:MOMENTS], prompts, rng)

    def point(self, solver: str, calls: int, limit: Tensor) -> Point:
        """What the solver makes of the prompts."""
        images, asked = self.generate(self.solved_by(solver, calls))
        error = None
        if solver in PLAIN:
            error = float((images.double() - limit.double()).square().mean().sqrt())
        return Point(asked, self.distance(images), error)


def main() -> None:
    options = arguments()
    bench, floor = prepared(options)
    limit, _ = bench.generate(bench.under(LIMIT))
    floors = Floors(limit=bench.distance(limit), **floor)
    found: dict[str, list[Point]] = {}
    for index, solver in enumerate((*PLAIN, *NOISY)):
        print(f"{index + 1} of {len(PLAIN + NOISY)}: {solver}", file=sys.stderr, flush=True)
        found[solver] = [bench.point(solver, calls, limit) for calls in CALLS]
    if options.json is not None:
        points = {name: [asdict(each) for each in points] for name, points in found.items()}
        tree = {"images": len(bench.prompts), "floors": asdict(floors), "solvers": points}
        options.json.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    plot(found, floors, len(bench.prompts), options.out)
    print(table(found, floors))
    print(options.out, file=sys.stderr)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare all solvers in few network calls.")
    parser.add_argument("run", help="a training run or model directory of a model of captions")
    parser.add_argument("data", help="a set with a split")
    parser.add_argument("--split", default="composition", help="its test part is asked for")
    parser.add_argument("--images", type=int, default=238, help="how many captions at most")
    target = Path(__file__).parent / "images" / "sampling-few-steps.png"
    parser.add_argument("--out", type=Path, default=target, help="where the figure goes")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    return parser.parse_args()


def prepared(options: argparse.Namespace) -> tuple[Bench, dict[str, float]]:
    """The bench, and the distances that need no sampling."""
    system = DiffusionSystem(model=find_model(options.run).directory)
    generator = DiffusionGenerator.load(system, Runtime.of())
    network = EfficientNetLite0().build(Runtime.of(precision="fp32"))
    size, split = generator.image_size, options.split
    real = images_of_set(options.data, size, limit=options.images, seed=0, split=split)
    count = len(real.captions)
    training = images_of_set(options.data, size, limit=count, seed=0, split=f"{split}/train")
    features, seen = network(to_bytes(real.images)), network(to_bytes(training.images))
    aim = fid.fit(features)
    halves = fid.fit(features[: count // 2]), fid.fit(features[count // 2 :])
    floors = {
        "training": fid.frechet_distance(fid.fit(seen), aim),
        "halves": fid.frechet_distance(*halves),
    }
    prompts = tuple(Prompt(caption, key=str(row)) for row, caption in enumerate(real.captions))
    return Bench(generator, prompts, network, aim, training), floors


def table(found: Mapping[str, Sequence[Point]], floors: Floors) -> str:
    """Distances and errors in markdown; the best of each column in bold."""
    head = [f"{calls} calls" for calls in CALLS]
    rows = ["| solver | " + " | ".join([*head, *head]) + " |", "|---" * (2 * len(head) + 1) + "|"]
    best = [min(points[index].distance for points in found.values()) for index in range(len(head))]
    for solver, points in found.items():
        distances = [
            f"**{point.distance:.1f}**" if point.distance == low else f"{point.distance:.1f}"
            for point, low in zip(points, best, strict=True)
        ]
        errors = ["" if point.error is None else f"{point.error:.1f}" for point in points]
        rows.append(f"| `{solver}` | " + " | ".join([*distances, *errors]) + " |")
    known = ", ".join(f"{name} {value:.2f}" for name, value in asdict(floors).items())
    return "\n".join([*rows, "", known])


def plot(found: Mapping[str, Sequence[Point]], floors: Floors, images: int, target: Path) -> None:
    """Three panels: distances without and with noise, and errors."""
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 5.6), layout="constrained")
    marks = dict(zip(PLAIN, "ovs^Dp*Xh", strict=True)) | dict(zip(NOISY, "osD^v", strict=True))
    titles = ("solvers that add no noise", "solvers that add noise")
    for axes, group, title in zip(panels, (PLAIN, NOISY), titles, strict=False):
        for name in group:
            line = [point.distance for point in found[name]]
            plot_line(axes, found[name], line, mark=marks[name], label=name)
        axes.axhline(floors.limit, color="black", lw=1, ls="--", label="200 steps of 2m")
        axes.axhline(floors.training, color="black", lw=1, ls=":", label="real, training")
        axes.set_title(f"{title}, {images} images", fontsize=10)
        axes.set_ylabel("Fréchet distance (higher ones are cut off)")
        axes.set_ylim(floors.training - 1, floors.limit + 8)
    for name in PLAIN:
        errors = [point.error or 0.0 for point in found[name]]
        plot_line(panels[2], found[name], errors, mark=marks[name], label=name)
    panels[2].set_yscale("log")
    panels[2].set_title("against the images of 200 steps", fontsize=10)
    panels[2].set_ylabel("root mean square difference, of 255")
    panels[2].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[2].yaxis.set_major_formatter(FormatStrFormatter("%g"))
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xticks(CALLS, [str(calls) for calls in CALLS])
        axes.minorticks_off()
        axes.set_xlabel("network calls for each image")
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    figure.savefig(target, dpi=90)


def plot_line(
    axes: Axes, points: Sequence[Point], line: Sequence[float], *, mark: str, label: str
) -> None:
    """One solver's line."""
    calls = [point.calls for point in points]
    axes.plot(calls, line, f"{mark}-", markersize=5, lw=1.2, alpha=0.85, label=label)


if __name__ == "__main__":
    main()
