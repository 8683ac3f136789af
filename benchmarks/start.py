"""Memory of a ZeRO-3 start, in shards and whole:  .venv/bin/python benchmarks/start.py

Two processes over gloo build the same prior twice: once as training does, each parameter filled
just before it is sharded, and once whole in each process before sharding. Each process reports how
far its resident memory rose above what it was before the model (Linux, /proc), until the shards
exist and until the engine does. A few minutes and 4 GiB at 302 million parameters.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from launch.train.local import free_port, wait_for_ranks
from models.nn.initialization import materialize
from trainer import distributed, engine
from trainer.recipe import load

WORLD = 2


def resident(key: str) -> float:
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def overrides(width: int, layers: int, precision: str) -> list[str]:
    return [
        *(f"model.width={width}", f"model.layers={layers}", f"model.heads={width // 64}"),
        *("model.head_width=64", "engine.zero=3", f"engine.precision={precision}", "batch=2"),
    ]


def measure(how: str, settings: list[str]) -> dict[str, float]:
    """Build one engine and say what it took, in MiB."""
    world = distributed.world_from_environment()
    engine.start(world)
    warnings.simplefilter("ignore")
    recipe = load("recipes/emoji_prior.yaml", settings)
    before = resident("VmRSS")
    forget_peak()
    with torch.device("meta"):
        model = recipe.model.build()
    if how == "whole":
        for _ in materialize(model, recipe.seed, "model", device=world.device):
            pass
    found: dict[str, float] = {"weights": sum(each.numel() for each in model.parameters())}
    make = engine.optimizers.build

    def noted(*args: object) -> object:
        found["shards"] = resident("VmHWM") - before
        found["left"] = resident("VmRSS") - before
        return make(*args)

    engine.optimizers.build = noted
    built = engine.Engine("model", model, recipe, world, recipe.engine.precision)
    found["engine"] = resident("VmHWM") - before
    first = next(iter(built.gather_full_state(built.local_weights()).values()))
    found["first"] = float(first.double().sum())
    distributed.barrier()
    distributed.leave()
    return found


def spawn(how: str, settings: list[str], folder: Path) -> list[dict[str, float]]:
    """What each process found."""
    common = {**os.environ, "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    common.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), OMP_NUM_THREADS="1")
    ranks = []
    for rank in range(WORLD):
        own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, __file__, "--rank", how, str(folder / f"{how}{rank}.json")]
        ranks.append(subprocess.Popen([*command, *settings], env=own, stdout=subprocess.DEVNULL))
    assert wait_for_ranks(ranks) == 0
    return [json.loads((folder / f"{how}{rank}.json").read_text()) for rank in range(WORLD)]


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        _, _, how, file, *settings = sys.argv
        Path(file).write_text(json.dumps(measure(how, settings)))
        return
    parser = argparse.ArgumentParser(description="Memory of a ZeRO-3 start, in shards and whole.")
    parser.add_argument("--width", type=int, default=1024, help="of the prior")
    parser.add_argument("--layers", type=int, default=24, help="of the prior")
    parser.add_argument("--precision", default="bf16", help="engine.precision")
    options = parser.parse_args()
    settings = overrides(options.width, options.layers, options.precision)
    print("| start | weights | peak until cut | held then | peak with the engine |")
    print("|---|---|---|---|---|")
    first_weights = set()
    with tempfile.TemporaryDirectory() as folder:
        for how in ("whole", "shards"):
            for found in spawn(how, settings, Path(folder)):
                first_weights.add(found["first"])
                sizes = " | ".join(f"{found[key]:,.0f} MiB" for key in ("shards", "left", "engine"))
                print(f"| {how} | {found['weights']:,.0f} | {sizes} |")
    assert len(first_weights) == 1, "both starts give the same weights"


if __name__ == "__main__":
    main()
