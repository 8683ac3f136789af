"""The UNet beside those of diffusers and two others; the arithmetic of solvers.

    python -m venv peers
    peers/bin/pip install -c constraints.txt torch pydantic numpy safetensors fsspec pyyaml \\
        einops pillow scipy tqdm beartype diffusers==0.42.0
    peers/bin/pip install --no-deps denoising-diffusion-pytorch==2.3.4 imagen-pytorch==2.1.0
    peers/bin/python benchmarks/diffusion.py --threads 2 [--quick] [--only unet|profile]

diffusers' networks get our weights and must give our outputs and gradients before anything is timed
(`peers_diffusion.py`). Everything runs in one process, interleaved; where the spread is too large
no ratio is called a result. The optimizer, the same for all, is left out of the step.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from operators import milliseconds, table  # noqa: E402
from peers_diffusion import (  # noqa: E402
    STEPS,
    DdpmPytorch,
    Diffusers,
    ImagenPytorch,
    Peer,
    parameters,
    relative,
    steps_of,
)
from timing import Row, Timing, as_table, interleaved, machine, run_command  # noqa: E402

from models.diffusion.condition import Condition  # noqa: E402
from models.diffusion.process import Process, ProcessConfig  # noqa: E402
from models.diffusion.schedules.discrete import DiscreteSchedule  # noqa: E402
from models.diffusion.solvers.ddim import DDIM  # noqa: E402
from models.diffusion.solvers.dpm_solver_pp_2m import DPMSolverPP2M  # noqa: E402
from models.diffusion.solvers.euler import Euler  # noqa: E402
from models.diffusion.solvers.solver import Solver  # noqa: E402
from models.diffusion.solvers.unipc import UniPC  # noqa: E402
from models.diffusion.unet.network import UNet, UNetConfig  # noqa: E402

Call = Callable[[Tensor, Tensor, Condition], Tensor]
GOALS = {"fp32": 1.15, "bf16": 1.15, "bf16 against fp32": 1.6, "solver": 5.0}
SOLVES = 10
NOISE = ProcessConfig(schedule=DiscreteSchedule(), prediction_type="noise")


@dataclass(frozen=True)
class Shape:
    """One comparison."""

    name: str
    config: UNetConfig
    batch: int
    others: Callable[[], list[Peer]]
    """Peers of about as many parameters."""


def shapes(*, quick: bool) -> list[Shape]:
    """10.4 million parameters without captions, 14.5 million with them, at 32 pixels."""
    settings: dict[str, Any] = {
        "image_size": 16 if quick else 32,
        "channels": 64,
        "multipliers": (1, 2) if quick else (1, 2, 3),
        "depth": 1 if quick else 2,
        "attention": (8,),
        "modulation": "add",
        "resampling": "convolution",
        "timestep_offset": 1,
        "process": NOISE,
    }
    plain = UNetConfig.model_validate(settings)
    captioned = UNetConfig.model_validate(
        {**settings, "heads": 4, "features": {"width": 256}, "transformer": {}}
    )
    batch = 2 if quick else 8
    widths = (1, 2) if quick else (1, 2, 4)
    return [
        Shape(
            "unet", plain, batch,
            lambda: [DdpmPytorch(64, widths), ImagenPytorch(56, widths, None)],
        ),
        Shape("captions", captioned, batch, lambda: [ImagenPytorch(64, widths, 256)]),
    ]  # fmt: skip


def new_unet(config: UNetConfig) -> UNet:
    """With the layers that start at 0 awake, so that every gradient says something."""
    torch.manual_seed(0)
    unet = config.build()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in unet.parameters():
            if not bool(weight.any()):
                weight.add_(torch.randn(weight.shape, generator=rng) * 0.02)
    return unet


def inputs(shape: Shape) -> tuple[Tensor, Tensor, Condition, Tensor]:
    """Noisy images, steps, the condition and the noise."""
    rng = torch.Generator().manual_seed(2)
    size = (shape.batch, 3, shape.config.image_size, shape.config.image_size)
    x, noise = torch.randn(2, *size, generator=rng)
    read = shape.config.features
    features = None if read is None else torch.randn(shape.batch, 77, read.width, generator=rng)
    return x, steps_of(shape.batch), Condition(features=features), noise


def own_call(unet: UNet) -> Call:
    """Ours, with steps counted from 0."""
    return lambda x, step, condition: unet(x, (step + 1) / STEPS, condition)


def error(call: Call, given: tuple[Tensor, Tensor, Condition, Tensor]) -> Tensor:
    """Of the noise."""
    x, step, condition, noise = given
    return (call(x, step, condition).float() - noise).square().mean()


def same_outputs(unet: UNet, peer: Diffusers, shape: Shape) -> float:
    """The largest difference of outputs."""
    x, step, condition, _ = inputs(shape)
    with torch.no_grad():
        found = float(
            (own_call(unet)(x, step, condition) - peer.call(x, step, condition)).abs().max()
        )
    return checked(f"{peer.name}'s outputs", found, 1e-4)


def same_gradients(unet: UNet, peer: Diffusers, shape: Shape) -> float:
    """The largest difference of gradients relative to their size."""
    given = inputs(shape)
    for model, call in ((unet, own_call(unet)), (peer.model, peer.call)):
        model.zero_grad()
        error(call, given).backward()
    return checked(f"{peer.name}'s gradients", relative(peer.gradients()), 1e-3)


def checked(what: str, difference: float, most: float) -> float:
    """The difference, where it is small enough to compare times."""
    if difference > most:
        raise SystemExit(f"{what} are not ours: {difference:.2g} away; no ratio is printed")
    return difference


def training_step(
    model: torch.nn.Module, call: Call, given: tuple[Tensor, Tensor, Condition, Tensor], kind: str
) -> None:
    """Forward, loss, backward."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        value = error(call, given)
    value.backward()


@torch.no_grad()
def own_sampling(unet: UNet, shape: Shape, kind: str) -> Tensor:
    """25 steps of DDIM."""
    from models.diffusion.process import denoiser

    x, _, condition, _ = inputs(shape)
    times = torch.linspace(1, 0, 26)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        return DDIM().solve(
            unet.process.schedule,
            denoiser(unet),
            x,
            times,
            condition,
            torch.Generator().manual_seed(0),
        )


@torch.no_grad()
def peer_sampling(peer: Peer, shape: Shape, kind: str) -> Tensor:
    """The same with diffusers' scheduler."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(25)
    x, _, condition, _ = inputs(shape)
    for step in scheduler.timesteps:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            noise = peer.call(x, step.expand(len(x)), condition).float()
        x = scheduler.step(noise, step, x).prev_sample
    return x


def flop(call: Call, shape: Shape) -> float:
    """Forward, per image."""
    x, step, condition, _ = inputs(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(x, step, condition)
    return counter.get_total_flops() / shape.batch


def sampling(shape: Shape, rounds: int) -> dict[str, object]:
    """Sampling at one shape."""
    unet = new_unet(shape.config).eval()
    peer = Diffusers(unet)
    peer.model.eval()
    outputs = same_outputs(unet, peer, shape)
    timings = interleaved(
        {
            "mezzotint fp32": lambda: own_sampling(unet, shape, "fp32"),
            f"{peer.name} fp32": lambda: peer_sampling(peer, shape, "fp32"),
            "mezzotint bf16": lambda: own_sampling(unet, shape, "bf16"),
            f"{peer.name} bf16": lambda: peer_sampling(peer, shape, "bf16"),
        },
        rounds,
    )
    rows = rows_of(f"{shape.name} 25 steps", timings, peer.name, rounds)
    return {"parity_of_outputs": outputs, "sample_25": as_table(timings), "rows": rows}


def training(shape: Shape, rounds: int) -> dict[str, object]:
    """The training step at one shape."""
    unet = new_unet(shape.config)
    peer = Diffusers(unet)
    peers: list[Peer] = [peer, *shape.others()]
    models = {"mezzotint": (unet, own_call(unet))}
    models |= {peer.name: (peer.model, peer.call) for peer in peers}
    given, gradients = inputs(shape), same_gradients(unet, peer, shape)
    steps = interleaved(
        {
            f"{name} {kind}": lambda model=model, call=call, kind=kind: training_step(
                model, call, given, kind
            )
            for name, (model, call) in models.items()
            for kind in ("fp32", "bf16")
        },
        rounds,
    )
    work = {name: flop(call, shape) for name, (_, call) in models.items()}
    rates = {
        name: 3 * work[name] * shape.batch / steps[f"{name} fp32"].median / 1e9 for name in models
    }
    return {
        "parity_of_gradients": gradients,
        "parameters": {name: parameters(model) for name, (model, _) in models.items()},
        "gflop_forward_per_image": {name: value / 1e9 for name, value in work.items()},
        "gflop_per_second_step_fp32": rates,
        "step": as_table(steps),
        "rows": rows_of(f"{shape.name} step", steps, peer.name, rounds),
    }


def rows_of(
    what: str, timings: Mapping[str, Timing], peer: str, rounds: int
) -> list[dict[str, object]]:
    """Against diffusers, which computes the same."""
    own, other = "mezzotint", peer
    pairs = {
        "fp32": ("fp32", "fp32"),
        "bf16": ("bf16", "bf16"),
        "bf16 against fp32": ("bf16", "fp32"),
    }
    return [
        asdict(
            Row.of(
                f"{what} {name}", timings[f"{own} {ours}"], timings[f"{other} {theirs}"],
                GOALS[name], rounds,
            )
        )
        for name, (ours, theirs) in pairs.items()
    ]  # fmt: skip


def solvers(rounds: int) -> dict[str, object]:
    """50 steps of each solver with a network that costs nothing, from its raw output on.

    A solve takes less than a millisecond, so each timing is of `SOLVES` of them.
    """
    import diffusers

    process = Process(NOISE)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    raw = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    times = torch.linspace(1, 0.02, 51)
    pairs: dict[str, tuple[Solver, str, dict[str, object]]] = {
        "DDIM": (DDIM(), "DDIMScheduler", {"clip_sample": False}),
        "Euler": (Euler(), "EulerDiscreteScheduler", {}),
        "DPM++2M": (DPMSolverPP2M(), "DPMSolverMultistepScheduler", {}),
        "UniPC": (UniPC(), "UniPCMultistepScheduler", {}),
    }

    def ours(solver: Solver) -> Callable[[], None]:
        def run() -> None:
            for _ in range(SOLVES):
                solver.solve(
                    process.schedule, lambda y, t, condition: process.prediction(raw, y, t),
                    x, times, None, torch.Generator(),
                )  # fmt: skip

        return run

    def theirs(name: str, settings: Mapping[str, object]) -> Callable[[], None]:
        scheduler = getattr(diffusers, name)(**settings)

        def run() -> None:
            for _ in range(SOLVES):
                scheduler.set_timesteps(50)
                y = x
                for step in scheduler.timesteps:
                    scheduler.scale_model_input(y, step)
                    y = scheduler.step(raw, step, y, return_dict=False)[0]

        return run

    found: dict[str, object] = {}
    rows = []
    with torch.no_grad():
        for name, (solver, kind, settings) in pairs.items():
            timings = interleaved(
                {"mezzotint": ours(solver), "diffusers": theirs(kind, settings)}, 4 * rounds
            )
            found[name] = {key: 1e3 * each.median / (50 * SOLVES) for key, each in timings.items()}
            own, other = timings["mezzotint"], timings["diffusers"]
            what = f"{SOLVES} x 50 x {name}"
            rows.append(asdict(Row.of(what, own, other, GOALS["solver"], 4 * rounds)))
    return {"ms_per_step": found, "rows": rows}


def profiles(shape: Shape) -> dict[str, object]:
    """Milliseconds of a training step by kinds of operators, ours and diffusers'."""
    unet = new_unet(shape.config)
    peer, given = Diffusers(unet), inputs(shape)
    return {
        kind: table(
            milliseconds(partial(training_step, unet, own_call(unet), given, kind)),
            milliseconds(partial(training_step, peer.model, peer.call, given, kind)),
        )
        for kind in ("fp32", "bf16")
    }


def measure(*, quick: bool, only: str | None) -> dict[str, object]:
    """Everything, as one tree."""
    rounds = 3 if quick else 7
    found: dict[str, object] = {"machine": machine()}
    if only == "profile":
        return found | {f"{one.name}, profile": profiles(one) for one in shapes(quick=quick)}
    asked = [shape for shape in shapes(quick=quick) if only in (None, shape.name)]
    # training last: a process that samples has not trained, which fragments its memory
    for shape in asked:
        found[f"{shape.name}, sampling"] = sampling(shape, rounds)
    if only in (None, "solvers"):
        found["solvers"] = solvers(rounds)
    for shape in asked:
        found[f"{shape.name}, training"] = training(shape, rounds)
    return found


if __name__ == "__main__":
    run_command(__doc__.split("\n")[0], ("unet", "captions", "solvers", "profile"), measure)
