"""A CLIP model, from a directory or a checkpoint, that ranks and scores images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.digests import sha256_file
from mezzotint.common.errors import UserError
from mezzotint.inference.config import ClipSource, OpenClip
from mezzotint.inference.images import from_bytes
from models import store
from models.clip import Clip, ImageTextEncoder, PretrainedClip


@dataclass(frozen=True)
class CaptionTokenizer:
    """The tokenizer of one model directory, at its text length."""

    tokenizer: Tokenizer
    length: int

    @classmethod
    def of(cls, directory: str) -> "CaptionTokenizer":
        """Read the tokenizer that a model directory carries.

        Raises:
            UserError: no tokenizer, a changed one, or no text length in config.json.
        """
        tokenizer = Tokenizer(store.tokenizer_bytes(directory), f"{directory}/{store.TOKENIZER}")
        length = store.describe(directory).text_length
        if length is None:
            raise UserError(f"{directory}: takes no captions (no text_length in config.json)")
        return cls(tokenizer, length)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Ids (n, length) int64."""
        return self.tokenizer(captions, self.length)


@dataclass(frozen=True)
class ClipEmbedder:
    """A frozen CLIP model with the tokenizer it was trained with."""

    model: ImageTextEncoder
    text: Callable[[Sequence[str]], Tensor]
    """Captions to the tokens (n, L) int64 that `model` takes."""
    digest: str
    source: Mapping[str, str]
    """Where it came from, as a protocol records it."""
    device: torch.device

    @classmethod
    def load(cls, source: ClipSource, device: str | torch.device = "cpu") -> "ClipEmbedder":
        """Read a model directory of kind `clip`, or an open_clip checkpoint.

        The digest names configuration and weights of a directory, the bytes of a checkpoint.

        Raises:
            UserError: no model directory or one of another kind; unknown architecture; no
                checkpoint or one that does not fit it.
        """
        place = torch.device(device)
        if isinstance(source, OpenClip):
            pretrained = PretrainedClip(source.architecture, source.checkpoint).to(place)
            return cls(
                pretrained,
                lambda captions: pretrained.tokens(list(captions)),
                sha256_file(source.checkpoint),
                source.model_dump(),
                place,
            )
        stored, model = store.describe(source), store.load(source, device=place)
        if not isinstance(model, Clip):
            raise UserError(
                f"{source}: holds a {stored.config.kind}, not a CLIP model; set clip (and "
                "system.ranker) to a directory that holds one"
            )
        text, about = CaptionTokenizer.of(source), {"kind": "clip", "directory": source}
        return cls(model, text, stored.digest, about, place)

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Unit-norm embeddings (n, D) float32 of images (n, H, W, 3) uint8, on the CPU."""
        return self.model.encode_image(from_bytes(images.to(self.device))).cpu()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Unit-norm embeddings (n, D) float32 of captions, on the CPU."""
        return self.model.encode_text(self.text(captions).to(self.device)).cpu()

    def scores(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosines (B,) of images (B, 3, H, W) in [-1, 1] with their captions, on the device."""
        tokens = self.text(captions).to(self.device)
        return (self.model.encode_image(images) * self.model.encode_text(tokens)).sum(dim=1).float()

    def protocol(self) -> Mapping[str, str]:
        return {**self.source, "digest": self.digest}
