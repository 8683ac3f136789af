"""A CLIP model, from a directory or a checkpoint, that ranks and scores images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.text.tokenizer import Tokenizer, TokenizerAt
from mezzotint.common.digests import sha256, sha256_file
from mezzotint.common.errors import UserError
from mezzotint.inference.config import ClipSource, OpenClip
from mezzotint.inference.images import from_bytes
from models import store
from models.clip import Clip, EncodedCaptions, ImageTextEncoder
from models.frozen_text import CaptionTokens
from models.pretrained.network import PretrainedClip


def caption_tokenizer(directory: str) -> TokenizerAt:
    """The tokenizer that a model directory carries, at its text length.

    Raises:
        UserError: no tokenizer, a changed one, or no text length in config.json.
    """
    tokenizer = Tokenizer(store.tokenizer_bytes(directory), f"{directory}/{store.TOKENIZER}")
    length = store.describe(directory).text_length
    if length is None:
        raise UserError(f"{directory}: takes no captions (no text_length in config.json)")
    return TokenizerAt(tokenizer, length)


@dataclass(frozen=True)
class ClipEmbedder:
    """A frozen CLIP model with the tokenizer it was trained with."""

    model: ImageTextEncoder
    text: CaptionTokens
    """Captions to the tokens (n, L) int64 that `model` takes."""
    digest: str
    source: Mapping[str, object]
    """Where it came from and how it takes images, as a protocol records it."""
    device: torch.device

    @classmethod
    def load(cls, source: ClipSource, device: str | torch.device = "cpu") -> "ClipEmbedder":
        """Read a model directory of kind `clip`, or an open_clip checkpoint.

        The digest names configuration and weights of a directory; of a checkpoint its weights and
        everything that its features depend on besides.

        Raises:
            UserError: no model directory or one of another kind; unknown architecture; no
                checkpoint, one that does not fit it, or one whose preprocessing is not known.
        """
        place = torch.device(device)
        if isinstance(source, OpenClip):
            return cls._pretrained(source, place)
        stored, model = store.describe(source), store.load(source, device=place)
        if not isinstance(model, Clip):
            raise UserError(
                f"{source}: holds a {stored.config.kind}, not a CLIP model; set clip (and "
                "system.ranker) to a directory that holds one"
            )
        text, about = caption_tokenizer(source), {"kind": "clip", "directory": source}
        return cls(model, text, stored.digest, about, place)

    @classmethod
    def _pretrained(cls, source: OpenClip, device: torch.device) -> "ClipEmbedder":
        model = PretrainedClip(source).to(device)
        known = {
            "architecture": source.architecture or model.known.shape,
            "quick_gelu": model.known.quick_gelu,
            **model.preprocessing.model_dump(mode="json"),
            "image_size": list(model.image_size),
            "text_length": model.tokens.length,
            "checkpoint_sha256": sha256_file(model.known.weights),
        }
        about = {**source.model_dump(mode="json", include={"kind", "checkpoint", "tag"}), **known}
        return cls(
            model,
            model.tokens,
            sha256(json.dumps(known, sort_keys=True)),
            about,
            device,
        )

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Unit-norm embeddings (n, D) float32 of images (n, H, W, 3) uint8, on the CPU."""
        return self.model.encode_image(from_bytes(images.to(self.device))).cpu()

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Unit-norm embeddings (n, D) float32 of captions, on the CPU."""
        return self.model.encode_text(self.text(captions).to(self.device)).cpu()

    @torch.no_grad()
    def project_images(self, images: Tensor) -> Tensor:
        """Embeddings (n, D) as sets hold them, not of unit norm, of images (n, H, W, 3) uint8.

        In fp32, on the CPU.
        """
        return self.model.project_image(from_bytes(images.to(self.device))).cpu()

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> EncodedCaptions:
        """What networks of unCLIP read of captions, in fp32 on the device.

        Features, their padding, and text embeddings as sets hold them, not of unit norm.
        """
        return self.model.encode_captions(self.text(captions).to(self.device))

    def scores(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosines (B,) of images (B, 3, H, W) in [-1, 1] with their captions, on the device."""
        tokens = self.text(captions).to(self.device)
        return (self.model.encode_image(images) * self.model.encode_text(tokens)).sum(dim=1).float()

    def protocol(self) -> Mapping[str, object]:
        return {**self.source, "digest": self.digest}
