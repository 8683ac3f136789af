"""What each piece of `models/nn/cpu` buys, and regional torch.compile beside them.

    .venv/bin/python benchmarks/cpu_pieces.py --threads 2 [--rounds 7] [--rows emoji_dvae ...]
        [--json FILE]

A row is a training step (forward, backward, AdamW) of a recipe at its batch and precision, or
sampling. Per round it runs once with all pieces, once without each, once in plain torch, and once
in plain torch with every block compiled, all in one process, in turning order. The ratio is the
time without a piece over the time with all: above 1 the piece pays. Compilation is timed apart.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from timing import Timing, interleaved, machine  # noqa: E402

from data_pipeline.batch import Batch  # noqa: E402
from models.autoregressive.decoding import Sampling, generate  # noqa: E402
from models.autoregressive.prior import Prior  # noqa: E402
from models.blocks import blocks_of  # noqa: E402
from models.nn.cpu import PIECES, plain_torch  # noqa: E402
from trainer import recipe as recipes  # noqa: E402
from trainer.engine_config import resolve_precision  # noqa: E402
from trainer.recipe import Recipe  # noqa: E402
from trainer.task import Step, Task  # noqa: E402

CPU = torch.device("cpu")
TRAINED = (
    *("emoji_base", "emoji_upsampler", "emoji_prior", "emoji_dvae", "emoji_clip"),
    *("emoji_class", "emoji_class fp32", "unet_128 fp32", "unet_128 bf16"),
)
SAMPLED = (
    "cascade",
    "prior bf16, 2 sequences",
    "prior bf16, 32 sequences",
    "prior fp32, 2 sequences",
)
WIDE = ("model.channels=64", "model.multipliers=[1,2,3]", "model.depth=2")
"""Overrides of emoji_class for a UNet with layers of 128 channels and more."""


@dataclass(frozen=True)
class Row:
    """One piece of work, built again for the compiled variant."""

    name: str
    build: Callable[[], tuple[Callable[[], object], list[nn.Module]]]
    """The work, and the networks that it runs."""
    compiles: bool = True


def recipe_of(name: str) -> tuple[Recipe, bool]:
    """The recipe of a training row, and whether it runs under autocast to bf16."""
    base, _, precision = name.partition(" ")
    wide = base == "unet_128"
    found = recipes.load(
        ROOT.parent / "recipes" / f"{'emoji_class' if wide else base}.yaml", WIDE if wide else ()
    )
    resolved = resolve_precision(found.engine.precision, CPU)
    return found, "bf16" in (precision or resolved)


def batch_of(recipe: Recipe, count: int) -> Batch:
    """Random images, captions and codes of the shapes that the recipe reads."""
    rng = Generator().manual_seed(0)
    data, model = recipe.data, recipe.model
    image, text, label, arrays = None, None, None, {}
    if data.image is not None:
        image = torch.rand(count, 3, data.image.size, data.image.size, generator=rng) * 2 - 1
    if data.text is not None:
        text = torch.randint(1, 300, (count, data.text.length), generator=rng)
    if data.label is not None:
        label = torch.randint(data.label.count, (count,), generator=rng)
    if data.arrays:
        arrays = {"codes": torch.randint(model.image_vocab, (count, *model.grid), generator=rng)}
    return Batch(("",) * count, ("",) * count, image, text, arrays, label)


def task_of(recipe: Recipe) -> Task:
    """The recipe's task over a new network."""
    torch.manual_seed(0)
    return recipe.task.build(recipe.model.build())


class Part:
    """What a task sees of an engine, without one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: object) -> object:
        """The module's forward."""
        return self.module(*inputs)


def training(name: str) -> Row:
    """A step of a recipe."""
    recipe, autocast = recipe_of(name)

    def build() -> tuple[Callable[[], object], list[nn.Module]]:
        task = task_of(recipe)
        parts = dict(task.parts())
        engines = {part: Part(module) for part, module in parts.items()}
        weights = [weight for part in parts.values() for weight in part.parameters()]
        optimizer = torch.optim.AdamW([weight for weight in weights if weight.requires_grad])
        batch = batch_of(recipe, recipe.batch)

        def work() -> None:
            optimizer.zero_grad()
            step = Step(0, Generator().manual_seed(0))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                losses = [loss.value for loss in task.losses(engines, batch, step)]
            for loss in losses:
                loss.backward()
            optimizer.step()

        return work, list(parts.values())

    return Row(f"train {name}", build)


def cascade() -> Row:
    """The previews of both stages of the cascade: 10 steps of DDIM each, 8 images."""
    stages = [recipes.load(ROOT.parent / "recipes" / f"{name}.yaml") for name in TRAINED[:2]]

    def build() -> tuple[Callable[[], object], list[nn.Module]]:
        tasks = [task_of(stage) for stage in stages]
        batches = [batch_of(stage, 8) for stage in stages]
        parts = [{name: part.eval() for name, part in task.parts().items()} for task in tasks]

        @torch.no_grad()
        def work() -> None:
            for task, part, batch in zip(tasks, parts, batches, strict=True):
                task.preview(part, batch, Generator().manual_seed(0))

        return work, [network for part in parts for network in part.values()]

    return Row("sample cascade", build)


def prior(name: str) -> Row:
    """All codes of an image from the prior, without guidance."""
    recipe, _ = recipe_of("emoji_prior")
    bf16, count = "bf16" in name, 32 if "32" in name else 2

    def build() -> tuple[Callable[[], object], list[nn.Module]]:
        network = task_of(recipe).parts()["model"].eval()
        assert isinstance(network, Prior)
        if bf16:
            network.bfloat16()
        text = batch_of(recipe, count).tokens

        def work() -> Tensor:
            return generate(network, text, Generator().manual_seed(0), sampling=Sampling())

        return work, [network]

    # its caches grow with every token, which compiled blocks would be compiled for
    return Row(f"sample {name}", build, compiles=False)


def without(work: Callable[[], object], *pieces: str) -> Callable[[], object]:
    """The work without some pieces, or in plain torch."""

    def run() -> None:
        with plain_torch(*pieces):
            work()

    return run


def compiled(row: Row) -> tuple[Callable[[], object], float]:
    """The work in plain torch with every block compiled, and the seconds of its first run."""
    # blocks of one class share compiled code, one version for each shape
    torch._dynamo.config.recompile_limit = 256
    work, networks = row.build()
    for network in networks:
        for block in blocks_of(network):
            block.compile()
    run = without(work)
    started = time.perf_counter()
    run()
    return run, time.perf_counter() - started


def measure(row: Row, rounds: int, pieces: Sequence[str]) -> dict[str, object]:
    """The ratios of one row."""
    work, _ = row.build()
    variants: dict[str, Callable[[], object]] = {"all": work}
    variants |= {piece: without(work, piece) for piece in pieces if piece in PIECES}
    variants["plain torch"] = without(work)
    first = None
    if row.compiles and "compiled" in pieces:
        variants["compiled"], first = compiled(row)
    timings = interleaved(variants, rounds)
    found: dict[str, object] = {"seconds": timings["all"].median, "ratios": ratios(timings)}
    if first is not None:
        found["compilation_seconds"] = first - timings["compiled"].median
    return found


def ratios(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """Each variant over all pieces: of medians, minima and processor time, and its spread."""
    base = timings["all"]
    return {
        name: {
            "median": each.median / base.median,
            "minimum": each.minimum / base.minimum,
            "cpu": each.cpu / base.cpu,
            "spread": max(each.spread, base.spread),
        }
        for name, each in timings.items()
        if name != "all"
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", nargs="*", help="only rows whose name holds one of these")
    parser.add_argument("--pieces", nargs="*", default=[*PIECES, "compiled"])
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything there")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [*map(training, TRAINED), cascade(), *map(prior, SAMPLED[1:])]
    found: dict[str, object] = {"machine": machine()}
    for row in rows:
        if options.rows and not any(each in row.name for each in options.rows):
            continue
        measured = measure(row, options.rounds, options.pieces)
        found[row.name] = measured
        print(f"{row.name}: {measured['seconds'] * 1e3:.1f} ms with all pieces")
        for name, each in measured["ratios"].items():
            variant = name if name in ("plain torch", "compiled") else f"without {name}"
            print(
                f"    {variant}: {each['median']:.2f} x (minimum {each['minimum']:.2f}, "
                f"cpu {each['cpu']:.2f}, spread {each['spread']:.2f})"
            )
        if "compilation_seconds" in measured:
            print(f"    compilation: {measured['compilation_seconds']:.1f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
