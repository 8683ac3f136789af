"""Systems as an evaluation asks them: captions in, 8-bit pictures out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.inference.clip import ClipEmbedder, TextReader
from mezzotint.inference.config import (
    CascadeSystem,
    DalleSystem,
    DiffusionSystem,
    HierarchySystem,
    Precision,
    SystemConfig,
)
from mezzotint.inference.diffusion import DiffusionDrawer
from mezzotint.inference.generator import Drawn, System
from mezzotint.inference.images import to_bytes
from mezzotint.inference.loading import (
    AutocastPolicy,
    computes_in_bf16,
    read_coded,
    read_model,
    through_codes,
)
from mezzotint.inference.vqvae2 import HierarchyDrawer
from models import store
from models.autoregressive.prior import Prior
from models.diffusion.super_resolution import SuperResolution
from models.diffusion.text_diffusion import TextDiffusion
from models.systems.cascade import Cascade, StageSampling
from models.systems.dalle import Dalle


def build_system(config: SystemConfig, precision: Precision = "auto") -> System:
    """Read a system's model directories.

    Raises:
        UserError: a directory is missing, damaged, or does not fit its neighbours.
        UserError: a directory holds another kind of model than the setting asks for.
    """
    match config:
        case DalleSystem():
            return DalleDrawer.load(config, precision)
        case HierarchySystem():
            return HierarchyDrawer.load(config, precision)
        case CascadeSystem():
            return CascadeDrawer.load(config, precision)
        case DiffusionSystem():
            return DiffusionDrawer.load(config, precision)
        case _:
            assert_never(config)


@dataclass(frozen=True)
class DalleDrawer:
    """Prior and the decoder of its codes, ranked by CLIP if there is one."""

    config: DalleSystem
    dalle: Dalle
    decoder: str
    """Kind of the autoencoder."""
    text: TextReader
    ranker: ClipEmbedder | None
    arithmetic: AutocastPolicy
    digests: Mapping[str, str]

    @classmethod
    def load(cls, config: DalleSystem, precision: Precision) -> "DalleDrawer":
        """Read the models of the configuration."""
        prior = read_model(config.prior, Prior, "prior")
        dvae = read_coded(config.dvae, "dvae")
        ranker = None if config.ranker is None else ClipEmbedder.load(config.ranker)
        return cls(
            config=config,
            dalle=Dalle(prior, dvae, None if ranker is None else ranker.model),
            decoder=store.describe(config.dvae).config.kind,
            text=TextReader.of(config.prior),
            ranker=ranker,
            arithmetic=AutocastPolicy(computes_in_bf16(precision)),
            digests={
                "prior": store.describe(config.prior).digest,
                "dvae": store.describe(config.dvae).digest,
                **({} if ranker is None else {"ranker": ranker.digest}),
            },
        )

    @property
    def image_size(self) -> int:
        """Side of the autoencoder's pictures."""
        return self.dalle.dvae.image_size

    def draw(self, captions: Sequence[str], seed: int) -> Drawn:
        """`candidates` pictures per caption with their cosines to it."""
        with torch.inference_mode(), self.arithmetic():
            samples = self.dalle.sample(
                self.text(captions),
                None if self.ranker is None else self.ranker.text(captions),
                torch.Generator().manual_seed(seed),
                candidates=self.config.candidates,
                sampling=self.config.sampling,
            )
        scores = None if samples.scores is None else samples.scores.float().clone()
        return Drawn(to_bytes(samples.images).clone(), scores)

    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Pictures through the autoencoder: the best this system can do with its codes."""
        dvae = self.dalle.dvae
        with torch.inference_mode(), self.arithmetic():
            return through_codes(pictures, dvae.tokens, dvae.decode_tokens)

    def protocol(self) -> Mapping[str, object]:
        """Models and sampling."""
        return {
            "kind": self.config.kind,
            "digests": dict(self.digests),
            "ranker": None if self.ranker is None else self.ranker.protocol(),
            "sampler": "ancestral image tokens, key/value cache",
            "sampling": self.config.sampling.model_dump(mode="json"),
            "steps": self.dalle.prior.config.image_length,
            "guidance": self.config.sampling.guidance,
            "candidates": self.config.candidates,
            "decoder": self.decoder,
            "chosen_by": "CLIP cosine" if self.ranker else "first drawn",
            "precision": self.arithmetic.name,
        }


@dataclass(frozen=True)
class CascadeDrawer:
    """Base decoder and super-resolution model."""

    config: CascadeSystem
    cascade: Cascade
    text: TextReader
    arithmetic: AutocastPolicy
    digests: Mapping[str, str]

    @classmethod
    def load(cls, config: CascadeSystem, precision: Precision) -> "CascadeDrawer":
        """Read the model directories of the configuration.

        Raises:
            UserError: the super-resolution model enlarges another size than the base draws.
        """
        base = read_model(config.base, TextDiffusion, "base")
        upsampler = read_model(config.upsampler, SuperResolution, "upsampler")
        if upsampler.config.low_size != base.config.image_size:
            raise UserError(
                f"system.upsampler: enlarges pictures of {upsampler.config.low_size} pixels, but "
                f"system.base draws {base.config.image_size}; choose two that fit"
            )
        return cls(
            config=config,
            cascade=Cascade(base, upsampler),
            text=TextReader.of(config.base),
            arithmetic=AutocastPolicy(computes_in_bf16(precision)),
            digests={
                "base": store.describe(config.base).digest,
                "upsampler": store.describe(config.upsampler).digest,
            },
        )

    @property
    def image_size(self) -> int:
        """Side of the super-resolution model's pictures."""
        return self.cascade.upsampler.config.image_size

    def draw(self, captions: Sequence[str], seed: int) -> Drawn:
        """One picture per caption."""
        with torch.inference_mode(), self.arithmetic():
            samples = self.cascade.sample(
                self.text(captions),
                torch.Generator().manual_seed(seed),
                base=self.config.base_sampling,
                upsampler=self.config.upsampler_sampling,
            )
        return Drawn(to_bytes(samples.images)[:, None].clone(), None, samples.calls)

    def reconstruct(self, pictures: Tensor) -> None:
        """Diffusion can draw any pixels: real images are compared with as they are."""
        return

    def protocol(self) -> Mapping[str, object]:
        """Models and sampling."""
        base, upsampler = self.config.base_sampling, self.config.upsampler_sampling
        return {
            "kind": self.config.kind,
            "digests": dict(self.digests),
            "sampler": sampler(base, upsampler),
            "steps": {"base": base.steps, "upsampler": upsampler.steps},
            "guidance": base.guidance,
            "eta": {"base": base.eta, "upsampler": upsampler.eta},
            "level": upsampler.level,
            "precision": self.arithmetic.name,
        }


def sampler(base: StageSampling, upsampler: StageSampling) -> str:
    """The solvers of a cascade in words."""
    names = [
        f"{'DDIM' if stage.solver is None else stage.solver.kind}, "
        f"{stage.sampling().time_grid.kind} times"
        for stage in (base, upsampler)
    ]
    return f"{' and '.join(dict.fromkeys(names))}, x0 clamped"
