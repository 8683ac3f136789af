"""Latent UNet, ControlNet's training step and controlled sampling beside those of diffusers.

    peers/bin/python benchmarks/latent.py --threads 1 [--quick] [--only control|profile]

The head of diffusion.py says how `peers` is made. diffusers' networks get our weights and must give
our outputs and gradients before anything is timed (`peers_latent.py`). Everything runs in one
process, interleaved; where the spread is too large no ratio is called a result. The optimizer, the
same for all, is left out of the step. The peak is that of live tensors which a step adds to weights
(see `timing.Peak`).
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from diffusion import (  # noqa: E402
    NOISE,
    Call,
    checked,
    error,
    new_unet,
    own_call,
    training_step,
)
from operators import milliseconds, table  # noqa: E402
from peers_diffusion import STEPS, Diffusers, parameters, relative, steps_of  # noqa: E402
from peers_latent import DiffusersControl, flop_counter  # noqa: E402
from timing import Row, Timing, as_table, interleaved, machine, peak_bytes, run_command  # noqa: E402

from models.diffusion.condition import Condition  # noqa: E402
from models.diffusion.control.hint_encoder import HintEncoderConfig  # noqa: E402
from models.diffusion.control.network import ControlConfig, UNetControl  # noqa: E402
from models.diffusion.process import denoiser  # noqa: E402
from models.diffusion.solvers.ddim import DDIM  # noqa: E402
from models.diffusion.unet.network import UNet, UNetConfig  # noqa: E402

STEP = {"fp32": 1.2, "bf16": 1.15, "bf16 against fp32": 2.0}
CONTROL_STEP = {"fp32": 1.3, "bf16": 1.3, "bf16 against fp32": 2.0}
SAMPLING = {"fp32": 1.2, "bf16": 1.2, "bf16 against fp32": 2.0}
KINDS = {"fp32": ("fp32", "fp32"), "bf16": ("bf16", "bf16"), "bf16 against fp32": ("bf16", "fp32")}


@dataclass(frozen=True)
class Shape:
    """Sizes of the comparison: a small Stable Diffusion of 256 pixels."""

    config: UNetConfig
    batch: int
    tokens: int
    hint_stride: int


def shape_of(*, quick: bool) -> Shape:
    """18.2 million parameters; latents of 32 x 32 x 4, 77 tokens of 256, hints of 256 pixels."""
    config = UNetConfig.model_validate(
        {
            "image_size": 16 if quick else 32,
            "image_channels": 4,
            "channels": 64,
            "multipliers": (1, 2) if quick else (1, 2, 4),
            "depth": 1 if quick else 2,
            "attention": (16,) if quick else (32, 16),
            "heads": 4,
            "features": {"width": 256},
            "transformer": {},
            "modulation": "add",
            "resampling": "convolution",
            "timestep_offset": 1,
            "process": NOISE,
        }
    )
    return Shape(config, batch=2 if quick else 4, tokens=77, hint_stride=8)


def inputs(shape: Shape, batch: int) -> tuple[Tensor, Tensor, Condition, Tensor]:
    """Noisy latents, steps, the condition with a hint, and the noise."""
    rng = torch.Generator().manual_seed(2)
    side = shape.config.image_size
    x, noise = torch.randn(2, batch, 4, side, side, generator=rng)
    features = torch.randn(batch, shape.tokens, 256, generator=rng)
    pixels = side * shape.hint_stride
    hint = torch.rand(batch, 3, pixels, pixels, generator=rng)
    return x, steps_of(batch), Condition(features=features, hints=(hint,)), noise


@dataclass
class Systems:
    """Ours and diffusers', of the same weights."""

    unet: UNet
    peer: Diffusers
    control: UNetControl
    peer_control: DiffusersControl

    @classmethod
    def of(cls, shape: Shape) -> "Systems":
        """The control's zero layers are awake, so that every gradient says something."""
        unet = new_unet(shape.config)
        hint = HintEncoderConfig(stride=shape.hint_stride)
        control = ControlConfig(base=shape.config, hint=hint).build()
        assert isinstance(control, UNetControl)
        weights, rng = unet.state_dict(), torch.Generator().manual_seed(3)
        with torch.no_grad():
            own = dict(control.named_parameters())
            for here, there in control.copied():
                own[here].copy_(weights[there])
            for weight in own.values():
                if not bool(weight.any()):
                    weight.add_(torch.randn(weight.shape, generator=rng) * 0.02)
        peer = Diffusers(unet)
        return cls(unet, peer, control, DiffusersControl(control, peer))

    def freeze_bases(self) -> None:
        """As both trainers do for a control."""
        self.unet.requires_grad_(False)  # noqa: FBT003
        self.peer.model.requires_grad_(False)  # noqa: FBT003

    def own_control(self, x: Tensor, step: Tensor, condition: Condition) -> Tensor:
        """Ours, with steps counted from 0."""
        return self.control(x, (step + 1) / STEPS, condition, self.unet)


class Controlled(nn.Module):
    """A control and its base as one network, for `denoiser`."""

    def __init__(self, systems: Systems) -> None:
        super().__init__()
        self.process = systems.unet.process
        self.control, self.base = systems.control, systems.unet

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.control(x, t, condition, self.base)


def parity(
    own: tuple[nn.Module, Call],
    peer: Diffusers | DiffusersControl,
    given: tuple[Tensor, Tensor, Condition, Tensor],
) -> dict[str, float]:
    """The largest differences of outputs, and of gradients relative to their size."""
    x, step, condition, _ = given
    with torch.no_grad():
        away = own[1](x, step, condition) - peer.call(x, step, condition)
    outputs = checked(f"{peer.name}'s outputs", float(away.abs().max()), 1e-4)
    for model, call in (own, (peer.model, peer.call)):
        model.zero_grad()
        error(call, given).backward()
    gradients = checked(f"{peer.name}'s gradients", relative(peer.gradients()), 1e-3)
    for model in (own[0], peer.model):
        model.zero_grad(set_to_none=True)
    return {"outputs": outputs, "gradients": gradients}


def training(
    what: str,
    own: tuple[nn.Module, Call],
    peer: Diffusers | DiffusersControl,
    given: tuple[Tensor, Tensor, Condition, Tensor],
    goals: tuple[Mapping[str, float], float],
    rounds: int,
) -> dict[str, object]:
    """Times, peaks and FLOP of a training step."""
    same = parity(own, peer, given)
    models = {"mezzotint": own, peer.name: (peer.model, peer.call)}
    work = {
        f"{name} {kind}": lambda model=model, call=call, kind=kind: training_step(
            model, call, given, kind
        )
        for name, (model, call) in models.items()
        for kind in ("fp32", "bf16")
    }
    timings = interleaved(work, rounds)
    peaks = {}
    for name, run in work.items():
        for model, _ in models.values():
            model.zero_grad(set_to_none=True)
        peaks[name] = peak_bytes(run)
    x, step, condition, _ = given
    flop = {}
    for name, (_, call) in models.items():
        with flop_counter() as counter, torch.no_grad():
            call(x, step, condition)
        flop[name] = counter.get_total_flops() / len(x)
    rows = rows_of(f"{what} step", timings, peer.name, goals[0], rounds)
    for kind, (ours, theirs) in KINDS.items():
        row = Row.of_counts(
            f"{what} step, peak of {kind}",
            peaks[f"mezzotint {ours}"],
            peaks[f"{peer.name} {theirs}"],
            1 / goals[1],
        )
        rows.append(asdict(row))
    return {
        "parity": same,
        "parameters": {name: parameters(model) for name, (model, _) in models.items()},
        "gflop_forward_per_image": {name: value / 1e9 for name, value in flop.items()},
        "step": as_table(timings),
        "peak_mib": {name: value / 2**20 for name, value in peaks.items()},
        "rows": rows,
    }


@torch.no_grad()
def own_sampling(systems: Systems, given: tuple[Tensor, Condition], kind: str) -> Tensor:
    """25 steps of DDIM with the control."""
    x, condition = given
    times = torch.linspace(1, 0, 26)
    network = Controlled(systems)
    schedule = network.process.schedule
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        rng = torch.Generator().manual_seed(0)
        return DDIM().solve(schedule, denoiser(network), x, times, condition, rng)


@torch.no_grad()
def peer_sampling(systems: Systems, given: tuple[Tensor, Condition], kind: str) -> Tensor:
    """The same with diffusers' scheduler."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(25)
    x, condition = given
    for step in scheduler.timesteps:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            noise = systems.peer_control.call(x, step.expand(len(x)), condition).float()
        x = scheduler.step(noise, step, x).prev_sample
    return x


def sampling(systems: Systems, shape: Shape, rounds: int) -> dict[str, object]:
    """25 steps with a control."""
    x, step, condition, _ = inputs(shape, max(1, shape.batch // 2))
    with torch.no_grad():
        away = systems.own_control(x, step, condition)
        away = away - systems.peer_control.call(x, step, condition)
    outputs = checked("diffusers' outputs", float(away.abs().max()), 1e-4)
    given, peer = (x, condition), systems.peer_control.name
    timings = interleaved(
        {
            f"{name} {kind}": lambda run=run, kind=kind: run(systems, given, kind)
            for name, run in (("mezzotint", own_sampling), (peer, peer_sampling))
            for kind in ("fp32", "bf16")
        },
        rounds,
    )
    rows = rows_of("25 steps with control", timings, peer, SAMPLING, rounds)
    return {"parity": {"outputs": outputs}, "sample_25": as_table(timings), "rows": rows}


def rows_of(
    what: str, timings: Mapping[str, Timing], peer: str, goals: Mapping[str, float], rounds: int
) -> list[dict[str, Any]]:
    """Against diffusers, which computes the same."""
    return [
        asdict(
            Row.of(
                f"{what} {kind}",
                timings[f"mezzotint {ours}"],
                timings[f"{peer} {theirs}"],
                goals[kind],
                rounds,
            )
        )
        for kind, (ours, theirs) in KINDS.items()
    ]


def profiles(
    systems: Systems, given: tuple[Tensor, Tensor, Condition, Tensor]
) -> dict[str, dict[str, object]]:
    """Milliseconds of a training step by kinds of operators, ours and diffusers'."""
    x, step, condition, noise = given
    plain = x, step, replace(condition, hints=()), noise
    pairs = {
        "unet": (plain, systems.unet, own_call(systems.unet), systems.peer),
        "control": (given, systems.control, systems.own_control, systems.peer_control),
    }
    found = {}
    for what, (taken, model, call, peer) in pairs.items():
        if what == "control":
            systems.freeze_bases()
        for kind in ("fp32", "bf16"):
            ours = milliseconds(partial(training_step, model, call, taken, kind))
            theirs = milliseconds(partial(training_step, peer.model, peer.call, taken, kind))
            found[f"{what} {kind}"] = table(ours, theirs)
    return found


def measure(*, quick: bool, only: str | None) -> dict[str, object]:
    """Everything, as one tree."""
    rounds = 3 if quick else 7
    shape = shape_of(quick=quick)
    systems = Systems.of(shape)
    given = inputs(shape, shape.batch)
    found: dict[str, object] = {"machine": machine()}
    if only == "profile":
        return found | {"profile": profiles(systems, given)}
    # training last: a process that samples has not trained, which fragments its memory
    if only in (None, "sampling"):
        found["sampling"] = sampling(systems, shape, rounds)
    if only in (None, "unet"):
        x, step, condition, noise = given
        plain = x, step, replace(condition, hints=()), noise
        own = systems.unet, own_call(systems.unet)
        found["unet"] = training("unet", own, systems.peer, plain, (STEP, 0.8), rounds)
    if only in (None, "control"):
        systems.freeze_bases()
        control = systems.control, systems.own_control
        goals = CONTROL_STEP, 0.7
        found["control"] = training("control", control, systems.peer_control, given, goals, rounds)
    return found


if __name__ == "__main__":
    run_command(__doc__.split("\n")[0], ("unet", "control", "sampling", "profile"), measure)
