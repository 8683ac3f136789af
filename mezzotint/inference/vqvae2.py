"""VQ-VAE-2 with its priors, as an evaluation asks it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.inference.clip import ClipEmbedder, TextReader
from mezzotint.inference.config import HierarchySystem, Precision
from mezzotint.inference.generator import Drawn
from mezzotint.inference.images import to_bytes
from mezzotint.inference.loading import AutocastPolicy, computes_in_bf16, read_model, through_codes
from models import store
from models.autoencoders.hierarchical import VQVAE2
from models.autoregressive.prior import Prior
from models.systems.dalle import clip_scores
from models.systems.hierarchy import Hierarchy


@dataclass(frozen=True)
class HierarchyDrawer:
    """VQ-VAE-2 and its priors, ranked by CLIP if there is one."""

    config: HierarchySystem
    hierarchy: Hierarchy
    text: TextReader
    ranker: ClipEmbedder | None
    arithmetic: AutocastPolicy
    digests: Mapping[str, str]

    @classmethod
    def load(cls, config: HierarchySystem, precision: Precision) -> "HierarchyDrawer":
        """Read the models of the configuration."""
        priors = [
            read_model(each, Prior, f"priors.{place}") for place, each in enumerate(config.priors)
        ]
        autoencoder = read_model(config.autoencoder, VQVAE2, "autoencoder")
        ranker = None if config.ranker is None else ClipEmbedder.load(config.ranker)
        names = autoencoder.config.names
        return cls(
            config=config,
            hierarchy=Hierarchy(priors, autoencoder),
            text=TextReader.of(config.priors[0]),
            ranker=ranker,
            arithmetic=AutocastPolicy(computes_in_bf16(precision)),
            digests={
                **{
                    name: store.describe(each).digest
                    for name, each in zip(names, config.priors, strict=True)
                },
                "autoencoder": store.describe(config.autoencoder).digest,
                **({} if ranker is None else {"ranker": ranker.digest}),
            },
        )

    @property
    def image_size(self) -> int:
        """Side of the autoencoder's pictures."""
        return self.hierarchy.autoencoder.image_size

    def draw(self, captions: Sequence[str], seed: int) -> Drawn:
        """`candidates` pictures per caption with their cosines to it."""
        count = self.config.candidates
        scores = None
        with torch.inference_mode(), self.arithmetic():
            drawn = self.hierarchy.sample(
                self.text(captions).repeat_interleave(count, dim=0),
                torch.Generator().manual_seed(seed),
                sampling=self.config.sampling,
            )
            images = drawn.images.view(len(captions), count, *drawn.images.shape[1:])
            if self.ranker is not None:
                scores = clip_scores(self.ranker.model, images, self.ranker.text(captions))
        return Drawn(to_bytes(images).clone(), None if scores is None else scores.float().clone())

    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Pictures through the autoencoder: the best this system can do with its codes."""
        autoencoder = self.hierarchy.autoencoder
        grids = autoencoder.config.grids
        sizes = [height * width for height, width in grids]

        def encode(images: Tensor) -> Tensor:
            return torch.cat([codes.flatten(1) for codes in autoencoder.codes(images)], dim=1)

        def decode(codes: Tensor) -> Tensor:
            levels = torch.split(codes, sizes, dim=1)
            return autoencoder.decode(
                [level.reshape(-1, *grid) for level, grid in zip(levels, grids, strict=True)]
            )

        with torch.inference_mode(), self.arithmetic():
            return through_codes(pictures, encode, decode)

    def protocol(self) -> Mapping[str, object]:
        """Models and sampling."""
        return {
            "kind": self.config.kind,
            "digests": dict(self.digests),
            "ranker": None if self.ranker is None else self.ranker.protocol(),
            "sampler": "ancestral codes level by level, key/value cache",
            "sampling": self.config.sampling.model_dump(mode="json"),
            "steps": [prior.config.image_length for prior in self.hierarchy.priors],
            "guidance": self.config.sampling.guidance,
            "candidates": self.config.candidates,
            "chosen_by": "CLIP cosine" if self.ranker else "first drawn",
            "precision": self.arithmetic.name,
        }
