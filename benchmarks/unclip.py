"""The diffusion prior of unCLIP beside diffusers' `PriorTransformer`: training step and sampling.

    peers/bin/python benchmarks/unclip.py --threads 1 [--quick] [--only sampling] [--json FILE]

The head of diffusion.py says how `peers` is made. `PriorTransformer` gets our weights and must give
our outputs, gradients and samples before anything is timed. The step is that of diffusers'
train_text_to_image_prior.py, the mean squared error of the normalised embedding, without optimizer.
Captions have 6 to 26 tokens of 77, in one more comparison all 77. Sampling is that of
`UnCLIPPipeline`: both sides of guidance as one batch, here by DDIM; text encoders are not timed.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from diffusion import checked  # noqa: E402
from peers_diffusion import STEPS, parameters, relative  # noqa: E402
from timing import Row, Timing, as_table, interleaved, machine, peak_bytes, run_command  # noqa: E402

from models.diffusion.condition import Condition  # noqa: E402
from models.diffusion.guidance import without_text  # noqa: E402
from models.diffusion.prior.diffusers import prior_settings, to_diffusers_prior  # noqa: E402
from models.diffusion.prior.network import DiffusionPrior, DiffusionPriorConfig  # noqa: E402
from models.diffusion.process import denoiser  # noqa: E402
from models.diffusion.sampling import DiffusionSampling  # noqa: E402
from models.diffusion.schedules.diffusers import scheduler_settings  # noqa: E402

KINDS = {"fp32": ("fp32", "fp32"), "bf16": ("bf16", "bf16"), "bf16 against fp32": ("bf16", "fp32")}
STEP, SAMPLING = 1.5, 2.0
GUIDANCE = 4.0
EMBEDDINGS = 64


@dataclass(frozen=True)
class Shape:
    """Sizes of the comparison."""

    config: DiffusionPriorConfig
    batch: int
    embeddings: int


def shape_of(*, quick: bool) -> Shape:
    """A prior of 3.8 million parameters for the embeddings of OpenAI's CLIP ViT-B/32."""
    config = DiffusionPriorConfig.model_validate(
        {
            "dim": 64 if quick else 512,
            "features": {"width": 64 if quick else 512},
            "length": 77,
            "width": 128 if quick else 256,
            "layers": 2 if quick else 4,
            "heads": 2 if quick else 4,
            "process": {
                "schedule": {"kind": "discrete", "betas": {"kind": "cosine"}},
                "prediction_type": "x0",
            },
        }
    )
    return Shape(config, batch=4 if quick else 32, embeddings=8 if quick else EMBEDDINGS)


@dataclass(frozen=True)
class Given:
    """What both get."""

    clean: Tensor
    noise: Tensor
    step: Tensor
    """(B,), from 0."""
    condition: Condition

    @classmethod
    def of(cls, shape: Shape, batch: int, *, padded: bool) -> "Given":
        """Captions of 6 to 26 tokens, or of all, and an empty one of two."""
        rng = torch.Generator().manual_seed(2)
        config = shape.config
        length = config.length
        clean, noise, text = torch.randn(3, batch, config.dim, generator=rng)
        count = torch.linspace(6, 26, batch).round() if padded else torch.full((batch,), length)
        place = torch.arange(length)
        features = torch.randn(batch + 1, length, config.features.width, generator=rng)
        condition = Condition(
            features=features[1:],
            features_mask=place < count[:, None],
            text_embedding=text,
            empty_features=features[0],
            empty_features_mask=place < 2,
            empty_text_embedding=torch.randn(config.dim, generator=rng),
        )
        return cls(clean, noise, torch.linspace(0, STEPS - 1, batch).round().long(), condition)


def new_prior(config: DiffusionPriorConfig) -> DiffusionPrior:
    """With every weight far from 0."""
    torch.manual_seed(0)
    return config.build()


class DiffusersPrior:
    """`PriorTransformer` with our weights."""

    def __init__(self, ours: DiffusionPrior) -> None:
        from diffusers import DDIMScheduler, PriorTransformer

        self.ours, self.name = ours, "diffusers PriorTransformer"
        settings = prior_settings(ours.config)
        settings.pop("_class_name")
        self.model: nn.Module = PriorTransformer(**settings)
        weights = to_diffusers_prior(ours.state_dict(), ours.config)
        self.model.load_state_dict(weights, strict=True)
        self.scheduler = DDIMScheduler.from_config(scheduler_settings(ours.config.process))

    def call(self, x: Tensor, step: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, D) at steps (B,), from 0, to x_0."""
        return self.model(
            x,
            timestep=step,
            proj_embedding=condition.text_embedding,
            encoder_hidden_states=condition.features,
            attention_mask=condition.features_mask,
        ).predicted_image_embedding

    def gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Its gradients beside ours (after backward through both)."""
        own = {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad
            for name, weight in self.ours.named_parameters()
        }
        theirs = dict(self.model.named_parameters())
        for name, gradient in to_diffusers_prior(own, self.ours.config).items():
            if theirs[name].grad is not None:  # those of the statistics are not used
                yield theirs[name].grad, gradient

    @torch.no_grad()
    def sample(self, given: Given, kind: str) -> Tensor:
        """As the prior's loop of `UnCLIPPipeline`."""
        cond = given.condition
        none = cond.without_text
        both = Condition(
            features=torch.cat([none.features, cond.features]),
            features_mask=torch.cat([none.features_mask, cond.features_mask]),
            text_embedding=torch.cat([none.text_embedding, cond.text_embedding]),
        )
        self.scheduler.set_timesteps(25)
        x = given.noise
        for step in self.scheduler.timesteps:
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
                found = self.call(torch.cat([x, x]), step.expand(2 * len(x)), both).float()
            unconditional, conditional = found.chunk(2)
            found = unconditional + GUIDANCE * (conditional - unconditional)
            x = self.scheduler.step(found, step, x).prev_sample
        return x


@torch.no_grad()
def own_sample(prior: DiffusionPrior, given: Given, kind: str) -> Tensor:
    """25 steps of DDIM with guidance."""
    sampling = DiffusionSampling.model_validate(
        {
            "steps": 25,
            "times": {"kind": "trailing"},
            "guidance": GUIDANCE,
            "thresholding": {"kind": "none"},
        }
    )
    plain = denoiser(prior)
    run = sampling.sampler_run(plain, without_text(plain), prior.process.schedule)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        return run.solve(given.noise, given.condition, torch.Generator().manual_seed(0))


def own_call(prior: DiffusionPrior, x: Tensor, step: Tensor, condition: Condition) -> Tensor:
    """Ours, with steps counted from 0."""
    return prior(x, (step + 1) / STEPS, condition)


def error(call: Any, prior: DiffusionPrior, given: Given) -> Tensor:  # noqa: ANN401
    """Of x_0."""
    noisy = prior.process.add_noise(given.clean, (given.step + 1) / STEPS, given.noise)
    return F.mse_loss(call(noisy, given.step, given.condition).float(), given.clean)


def training(
    name: str, prior: DiffusionPrior, peer: DiffusersPrior, given: Given, rounds: int
) -> dict[str, object]:
    """Times and peaks of a training step."""
    models: dict[str, tuple[nn.Module, Any]] = {
        "mezzotint": (
            prior.train(),
            lambda x, step, condition: own_call(prior, x, step, condition),
        ),
        peer.name: (peer.model.train(), peer.call),
    }

    def run(model: nn.Module, call: Any, kind: str) -> None:  # noqa: ANN401
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            value = error(call, prior, given)
        value.backward()

    with torch.no_grad():
        away = own_call(prior, given.noise, given.step, given.condition)
        away = away - peer.call(given.noise, given.step, given.condition)
    outputs = checked(f"{peer.name}'s outputs", float(away.abs().max()), 1e-5)
    for model, call in models.values():
        run(model, call, "fp32")
    gradients = checked(f"{peer.name}'s gradients", relative(peer.gradients()), 1e-3)
    work = {
        f"{who} {kind}": lambda model=model, call=call, kind=kind: run(model, call, kind)
        for who, (model, call) in models.items()
        for kind in ("fp32", "bf16")
    }
    timings = interleaved(work, rounds)
    peaks = {}
    for who, step in work.items():
        for model, _ in models.values():
            model.zero_grad(set_to_none=True)
        peaks[who] = peak_bytes(step)
    rows = rows_of(name, timings, peer.name, STEP, rounds)
    for kind, (ours, theirs) in KINDS.items():
        pair = peaks[f"mezzotint {ours}"], peaks[f"{peer.name} {theirs}"]
        rows.append(asdict(Row.of_counts(f"{name}, peak of {kind}", *pair, 1.0)))
    return {
        "parity": {"outputs": outputs, "gradients": gradients},
        "parameters": {who: parameters(model) for who, (model, _) in models.items()},
        "tokens": given.condition.features_mask.sum(dim=1).tolist(),
        "step": as_table(timings),
        "peak_mib": {who: value / 2**20 for who, value in peaks.items()},
        "rows": rows,
    }


def sampling(prior: DiffusionPrior, peer: DiffusersPrior, shape: Shape, rounds: int) -> Any:  # noqa: ANN401
    """25 steps with guidance."""
    prior.eval()
    peer.model.eval()
    given = Given.of(shape, shape.embeddings, padded=True)
    away = (own_sample(prior, given, "fp32") - peer.sample(given, "fp32")).abs().max()
    samples = checked(f"{peer.name}'s samples", float(away), 1e-3)
    work = {
        f"{who} {kind}": lambda run=run, kind=kind: run(given, kind)
        for who, run in (
            ("mezzotint", lambda given, kind: own_sample(prior, given, kind)),
            (peer.name, peer.sample),
        )
        for kind in ("fp32", "bf16")
    }
    timings = interleaved(work, rounds)
    name = f"{shape.embeddings} embeddings by 25 steps"
    rows = rows_of(name, timings, peer.name, SAMPLING, rounds)
    return {"parity": {"samples": samples}, "sample_25": as_table(timings), "rows": rows}


def rows_of(
    what: str, timings: Mapping[str, Timing], peer: str, goal: float, rounds: int
) -> list[dict[str, Any]]:
    """Against diffusers, which computes the same."""
    return [
        asdict(
            Row.of(
                f"{what}, {kind}",
                timings[f"mezzotint {ours}"],
                timings[f"{peer} {theirs}"],
                goal,
                rounds,
            )
        )
        for kind, (ours, theirs) in KINDS.items()
    ]


def measure(*, quick: bool, only: str | None) -> dict[str, object]:
    """Everything, as one tree."""
    rounds = 3 if quick else 7
    shape = shape_of(quick=quick)
    prior = new_prior(shape.config)
    peer = DiffusersPrior(prior)
    found: dict[str, object] = {"machine": machine()}
    if only in (None, "sampling"):
        found["sampling"] = sampling(prior, peer, shape, rounds)
    for part, padded in (("captions", True), ("full", False)):
        if only in (None, part):
            given = Given.of(shape, shape.batch, padded=padded)
            name = "prior step" if padded else "prior step of 77 tokens"
            found[part] = training(name, prior, peer, given, rounds)
    return found


if __name__ == "__main__":
    run_command(__doc__.split("\n")[0], ("captions", "full", "sampling"), measure)
