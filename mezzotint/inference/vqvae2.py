"""VQ-VAE-2: a prior per level, each conditioned on the coarser codes (arXiv 1906.00446, 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from mezzotint.inference.clip import ClipEmbedder, caption_tokenizer
from mezzotint.inference.config import HierarchySystem
from mezzotint.inference.dalle import rank, text_encoders
from mezzotint.inference.generator import Block, ImageGenerator, Progress
from mezzotint.inference.images import quantize_images, to_bytes
from mezzotint.inference.model_directory import read_model
from mezzotint.inference.preprocessing import require_equal_preprocessing
from mezzotint.inference.runtime import Runtime
from models import store
from models.autoencoders.hierarchical import VQVAE2
from models.autoencoders.levels import LevelShape, level_prefix, level_shapes
from models.autoregressive.decoding import generate
from models.autoregressive.prior import Prior
from models.frozen_text import CaptionTokens


@dataclass(frozen=True)
class VQVAE2Generator(ImageGenerator):
    """Priors of all levels, the coarsest first, the VQ-VAE-2, and perhaps a CLIP that ranks.

    Raises:
        UserError: a prior's vocabularies, lengths or grid are not its level's.
    """

    config: HierarchySystem
    priors: tuple[Prior, ...]
    autoencoder: VQVAE2
    tokenizer: CaptionTokens
    runtime: Runtime
    ranker: ClipEmbedder | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config, top = self.autoencoder.config, self.priors[0].config
        if len(self.priors) != config.levels:
            raise UserError(f"{config.levels} levels need as many priors, not {len(self.priors)}")
        shapes = level_shapes(config, top.text_vocab, top.text_length)
        for prior, (name, shape) in zip(self.priors, shapes.items(), strict=True):
            found = prior.config
            ours = LevelShape(found.text_vocab, found.text_length, found.image_vocab, found.grid)
            if ours != shape:
                raise UserError(f"the prior of level {name} is {ours}; it must be {shape}")

    @classmethod
    def load(cls, config: HierarchySystem, runtime: Runtime) -> "VQVAE2Generator":
        """Read the model directories of a configuration.

        Raises:
            UserError: a directory is missing, damaged, or incompatible with the others.
        """
        device = runtime.device
        priors = tuple(
            read_model(each, Prior, f"priors.{index}", device)
            for index, each in enumerate(config.priors)
        )
        autoencoder = read_model(config.autoencoder, VQVAE2, "autoencoder", device)
        ranker = None if config.ranker is None else ClipEmbedder.load(config.ranker, device)
        directories = dict(zip(autoencoder.config.names, config.priors, strict=False))
        directories["autoencoder"] = config.autoencoder
        require_equal_preprocessing(directories, force=config.force_preprocessing)
        digests = {name: store.describe(each).digest for name, each in directories.items()}
        if ranker is not None:
            digests["ranker"] = ranker.digest
        tokenizer = caption_tokenizer(config.priors[0])
        return cls(config, priors, autoencoder, tokenizer, runtime, ranker, digests)

    @property
    def image_size(self) -> int:
        return self.autoencoder.image_size

    @property
    def text_encoders(self) -> Mapping[str, CaptionTokens]:
        return text_encoders(self.tokenizer, self.ranker)

    @property
    def candidates(self) -> int:
        return self.config.candidates

    def _sample(self, block: Block) -> Mapping[str, Tensor]:
        captions = block.captions
        text = self.tokenizer(captions).to(self.runtime.device)
        codes = self.sample_codes(text, block.rng, block.report)
        images = self.autoencoder.decode(codes)
        return {"images": to_bytes(images), **rank(self.ranker, images, captions)}

    @torch.no_grad()
    def sample_codes(
        self, text: Tensor, rng: Generator, progress: Progress | None = None
    ) -> list[Tensor]:
        """Codes (B, h, w) of every level for captions (B, T), the coarsest first.

        Guidance acts on the coarsest level alone: below it an empty caption would hide the codes.
        """
        sampling, config = self.config.sampling, self.autoencoder.config
        vocab, text_vocab = config.bottleneck.codes, self.priors[0].config.text_vocab
        total = sum(prior.config.image_length for prior in self.priors)
        codes: list[Tensor] = []
        done = 0
        for prior in self.priors:

            def report(here: int, _: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + here, total)

            prefix = level_prefix(text, codes, text_vocab, [vocab] * len(codes))
            found = generate(prior, prefix, rng, sampling=sampling, progress=report)
            codes.append(found.view(len(text), *prior.config.grid))
            done += prior.config.image_length
            sampling = sampling.model_copy(update={"guidance": 1.0})
        return codes

    def reconstruct(self, images: Tensor) -> Tensor:
        autoencoder = self.autoencoder
        grids = autoencoder.config.grids
        sizes = [height * width for height, width in grids]

        def encode(images: Tensor) -> Tensor:
            return torch.cat([codes.flatten(1) for codes in autoencoder.codes(images)], dim=1)

        def decode(codes: Tensor) -> Tensor:
            levels = torch.split(codes, sizes, dim=1)
            return autoencoder.decode(
                [level.reshape(-1, *grid) for level, grid in zip(levels, grids, strict=True)]
            )

        with self.runtime.inference():
            return quantize_images(images, encode, decode, self.runtime.device)

    def protocol(self) -> Mapping[str, object]:
        return {
            "kind": self.config.kind,
            "digests": dict(self.digests),
            "ranker": None if self.ranker is None else self.ranker.protocol(),
            "sampler": "ancestral codes level by level, key/value cache",
            "sampling": self.config.sampling.model_dump(mode="json"),
            "steps": [prior.config.image_length for prior in self.priors],
            "guidance": self.config.sampling.guidance,
            "candidates": self.config.candidates,
            "chosen_by": "CLIP cosine" if self.ranker else "first sample",
            "precision": self.runtime.precision_name,
        }
