"""DALL-E: a prior generates codes, the dVAE decodes them, CLIP ranks them (arXiv 2102.12092).

Any autoencoder with one codebook can take the dVAE's place, as a VQ-GAN in arXiv 2012.09841.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.inference.clip import ClipEmbedder, caption_tokenizer
from mezzotint.inference.config import DalleSystem
from mezzotint.inference.generator import Block, GenerationRequest, ImageGenerator
from mezzotint.inference.images import from_bytes, quantize_images, to_bytes
from mezzotint.inference.model_directory import read_discrete_autoencoder, read_model
from mezzotint.inference.preprocessing import require_equal_preprocessing
from mezzotint.inference.runtime import Runtime
from models import store
from models.autoencoders.protocols import DiscreteAutoencoder
from models.autoregressive.decoding import generate
from models.autoregressive.prior import Prior
from models.finite import require_finite
from models.frozen_text import CaptionTokens


@dataclass(frozen=True)
class DalleGenerator(ImageGenerator):
    """Prior, autoencoder and, to rank candidates, a CLIP.

    Raises:
        UserError: the autoencoder has no codes, or the prior's image_vocab or grid is not its.
    """

    config: DalleSystem
    prior: Prior
    dvae: DiscreteAutoencoder
    tokenizer: CaptionTokens
    runtime: Runtime
    ranker: ClipEmbedder | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vocab, prior = self.dvae.vocabularies().get("codes"), self.prior.config
        if vocab is None:
            raise UserError("the autoencoder's latent is continuous; a prior generates codes")
        if prior.image_vocab != vocab or prior.grid != self.dvae.grid:
            raise UserError(
                f"the prior generates {prior.grid} codes of {prior.image_vocab} and the dvae has "
                f"{self.dvae.grid} of {vocab}; use the dvae that made the prior's training tokens"
            )

    @classmethod
    def load(cls, config: DalleSystem, runtime: Runtime) -> "DalleGenerator":
        """Read the model directories of a configuration.

        Raises:
            UserError: a directory is missing, damaged, or incompatible with the others.
        """
        device = runtime.device
        prior = read_model(config.prior, Prior, "prior", device)
        dvae = read_discrete_autoencoder(config.dvae, "dvae", device)
        ranker = None if config.ranker is None else ClipEmbedder.load(config.ranker, device)
        digests = {name: store.describe(getattr(config, name)).digest for name in ("prior", "dvae")}
        if ranker is not None:
            digests["ranker"] = ranker.digest
        require_equal_preprocessing(
            {"prior": config.prior, "dvae": config.dvae}, force=config.force_preprocessing
        )
        tokenizer = caption_tokenizer(config.prior)
        return cls(config, prior, dvae, tokenizer, runtime, ranker, digests)

    @property
    def image_size(self) -> int:
        return self.dvae.image_size

    @property
    def text_encoders(self) -> Mapping[str, CaptionTokens]:
        return text_encoders(self.tokenizer, self.ranker)

    @property
    def candidates(self) -> int:
        return self.config.candidates

    def _check(self, request: GenerationRequest) -> None:
        request.refuse(self.config.kind, noise=True)
        request.require_captions(self.config.kind)
        (height, width), prefix = self.dvae.grid, request.prefix_codes
        if prefix is not None and (prefix.shape[0] > height or prefix.shape[1] != width):
            raise UserError(
                f"prefix_codes: {prefix.shape[0]} rows of {prefix.shape[1]} codes were given, and "
                f"the grid has {height} of {width}"
            )

    def _sample(self, block: Block) -> Mapping[str, Tensor]:
        captions, prefix = block.captions, block.prefix_codes
        codes = generate(
            self.prior,
            self.tokenizer(captions).to(self.runtime.device),
            block.rng,
            sampling=self.config.sampling,
            prefix=None if prefix is None else prefix.reshape(1, -1).expand(len(captions), -1),
            progress=block.report,
        ).view(-1, *self.dvae.grid)
        images = self.dvae.decode_tokens(codes)
        scores = rank(self.ranker, images, captions)
        return {"images": to_bytes(images), "codes": codes, **scores}

    def prefix_codes(self, image: Tensor, rows: int) -> Tensor:
        """Codes (rows, w) of the upper rows of an image (H, W, 3) uint8.

        With them as prefix images are completed from their upper part (arXiv 2102.12092, fig. 2d).

        Raises:
            UserError: the grid has fewer rows.
        """
        height = self.dvae.grid[0]
        if not 0 <= rows <= height:
            raise UserError(f"the grid of codes has {height} rows; {rows} of them cannot be kept")
        with self.runtime.inference():
            return self.dvae.tokens(from_bytes(image[None].to(self.runtime.device)))[0, :rows]

    def reconstruct(self, images: Tensor) -> Tensor:
        with self.runtime.inference():
            return quantize_images(
                images, self.dvae.tokens, self.dvae.decode_tokens, self.runtime.device
            )

    def protocol(self) -> Mapping[str, object]:
        return {
            "kind": self.config.kind,
            "digests": dict(self.digests),
            "ranker": None if self.ranker is None else self.ranker.protocol(),
            "sampler": "ancestral image tokens, key/value cache",
            "sampling": self.config.sampling.model_dump(mode="json"),
            "steps": self.prior.config.image_length,
            "guidance": self.config.sampling.guidance,
            "candidates": self.config.candidates,
            "decoder": store.describe(self.config.dvae).config.kind,
            "chosen_by": "CLIP cosine" if self.ranker else "first sample",
            "precision": self.runtime.precision_name,
        }


def rank(
    ranker: ClipEmbedder | None, images: Tensor, captions: Sequence[str]
) -> Mapping[str, Tensor]:
    """The `scores` (B,) of images (B, 3, H, W), if there is a ranker."""
    if ranker is None:
        return {}
    scores = ranker.scores(images, captions)
    require_finite("its CLIP score is", scores)
    return {"scores": scores}


def text_encoders(
    tokenizer: CaptionTokens, ranker: ClipEmbedder | None
) -> Mapping[str, CaptionTokens]:
    """What reads captions: the prior, and the ranker if there is one."""
    return {"model": tokenizer} | ({} if ranker is None else {"ranker": ranker.text})
