"""Cascaded diffusion: a text-conditional base, then super-resolution (arXiv 2106.15282)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from mezzotint.inference.clip import caption_tokenizer
from mezzotint.inference.config import CascadeSystem, StageSampling
from mezzotint.inference.generator import Block, ImageGenerator, Progress
from mezzotint.inference.images import to_bytes
from mezzotint.inference.model_directory import read_model
from mezzotint.inference.preprocessing import require_equal_preprocessing
from mezzotint.inference.runtime import Runtime
from models import store
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_text
from models.diffusion.process import denoiser
from models.diffusion.sampling import NFE, count_nfe
from models.diffusion.super_resolution import SuperResolution
from models.diffusion.text_diffusion import TextDiffusion
from models.diffusion.unet.network import UNet
from models.frozen_text import CaptionTokens
from models.nn.random import normal

Base = TextDiffusion | UNet
"""Generates small images from captions."""
Upsampler = SuperResolution | UNet
"""Enlarges images."""


@dataclass(frozen=True)
class CascadeGenerator(ImageGenerator):
    """A base and the super-resolution network that enlarges its images."""

    config: CascadeSystem
    base: Base
    upsampler: Upsampler
    tokenizer: CaptionTokens
    runtime: Runtime
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, config: CascadeSystem, runtime: Runtime) -> "CascadeGenerator":
        """Read the model directories of a configuration.

        Raises:
            UserError: a directory is missing or damaged, or the super-resolution model enlarges
                another size than the base generates.
        """
        base = read_model(config.base, TextDiffusion, "base", runtime.device)
        upsampler = read_model(config.upsampler, SuperResolution, "upsampler", runtime.device)
        if upsampler.config.low_size != base.config.image_size:
            raise UserError(
                f"system.upsampler: enlarges images of {upsampler.config.low_size} pixels, but "
                f"system.base generates {base.config.image_size}; choose two that fit"
            )
        require_equal_preprocessing(
            {"base": config.base, "upsampler": config.upsampler}, force=config.force_preprocessing
        )
        digests = {
            name: store.describe(getattr(config, name)).digest for name in ("base", "upsampler")
        }
        tokenizer = caption_tokenizer(config.base)
        return cls(config, base, upsampler, tokenizer, runtime, digests)

    @property
    def image_size(self) -> int:
        return self.upsampler.config.image_size

    @property
    def text_encoders(self) -> Mapping[str, CaptionTokens]:
        return {"model": self.tokenizer}

    def _sample(self, block: Block) -> Mapping[str, Tensor]:
        first, second, nfe = self.config.base_sampling, self.config.upsampler_sampling, NFE()
        total = first.steps + second.steps
        text = self.tokenizer(block.captions).to(self.runtime.device)
        low = sample_base(
            self.base,
            text,
            block.rng,
            first,
            nfe,
            progress=lambda done, _: block.report(done, total),
        )
        images = upsample(
            self.upsampler, low, block.rng, second, nfe,
            progress=lambda done, _: block.report(first.steps + done, total),
        )  # fmt: skip
        return {
            "images": to_bytes(images),
            "nfe": torch.tensor([nfe.network, nfe.classifier], device="cpu"),
        }

    def protocol(self) -> Mapping[str, object]:
        base, upsampler = self.config.base_sampling, self.config.upsampler_sampling
        return {
            "kind": self.config.kind,
            "digests": dict(self.digests),
            "sampler": sampler_name(base, upsampler),
            "steps": {"base": base.steps, "upsampler": upsampler.steps},
            "guidance": base.guidance,
            "eta": {"base": base.eta, "upsampler": upsampler.eta},
            "level": upsampler.level,
            "precision": self.runtime.precision_name,
        }


def sampler_name(base: StageSampling, upsampler: StageSampling) -> str:
    """The solvers of both stages, for a protocol."""
    names = [
        f"{'DDIM' if stage.solver is None else stage.solver.kind}, "
        f"{stage.sampling().time_grid.kind} times"
        for stage in (base, upsampler)
    ]
    return f"{' and '.join(dict.fromkeys(names))}, x0 clamped"


@torch.no_grad()
def sample_base(
    base: Base,
    text: Tensor,
    rng: Generator,
    stage: StageSampling,
    nfe: NFE,
    *,
    progress: Progress | None = None,
) -> Tensor:
    """Images (B, 3, h, w) in [-1, 1] for captions (B, L)."""
    side = base.config.image_size
    noise = normal((len(text), 3, side, side), rng, text.device)
    plain, cond = count_nfe(denoiser(base), nfe), Condition(text=text)
    run = stage.sampling().sampler_run(plain, without_text(plain), base.process.schedule)
    return run.solve(noise, cond, rng, progress).clamp(-1, 1)


@torch.no_grad()
def upsample(
    upsampler: Upsampler,
    low: Tensor,
    rng: Generator,
    stage: StageSampling,
    nfe: NFE,
    *,
    progress: Progress | None = None,
) -> Tensor:
    """Images in [-1, 1], larger by the network's factor than `low` (B, 3, h, w)."""
    factor = upsampler.config.factor
    level = torch.full((len(low),), stage.level, device=low.device)
    augmented = upsampler.augmentation(low, level, rng)
    shape = (len(low), 3, low.shape[2] * factor, low.shape[3] * factor)
    noise = normal(shape, rng, low.device)
    plain, cond = (
        count_nfe(denoiser(upsampler), nfe),
        Condition(low_res=augmented, noise_level=level),
    )
    run = stage.sampling().sampler_run(plain, plain, upsampler.process.schedule)
    return run.solve(noise, cond, rng, progress).clamp(-1, 1)
