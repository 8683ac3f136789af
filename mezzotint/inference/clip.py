"""A CLIP model, from a directory or a checkpoint, as a judge of pictures and captions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.digests import sha256_file
from mezzotint.common.errors import UserError
from mezzotint.inference.config import ClipSource, OpenClip
from mezzotint.inference.images import from_bytes
from models import store
from models.clip import Clip, ImageText, PretrainedClip


@dataclass(frozen=True)
class TextReader:
    """Captions to the token ids of one model directory: its tokenizer, at its length."""

    tokenizer: Tokenizer
    length: int

    @classmethod
    def of(cls, directory: str) -> "TextReader":
        """The tokenizer that a model directory carries.

        Raises:
            UserError: no tokenizer, or a changed one.
            UserError: the directory does not say how long captions are.
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

    model: ImageText
    text: Callable[[Sequence[str]], Tensor]
    """Captions to the tokens (n, L) int64 that `model` takes."""
    digest: str
    source: Mapping[str, str]
    """Where it came from, as a protocol tells it."""

    @classmethod
    def load(cls, source: ClipSource) -> "ClipEmbedder":
        """Read a model directory of kind `clip`, or an open_clip checkpoint.

        Raises:
            UserError: a directory holds another kind of model.
            UserError: no model directory or a damaged one; no checkpoint or one that does not fit.
        """
        match source:
            case str():
                return cls.of_directory(source)
            case OpenClip():
                return cls.of_checkpoint(source)
            case _:
                assert_never(source)

    @classmethod
    def of_directory(cls, directory: str) -> "ClipEmbedder":
        """Read a model directory of kind `clip`; its digest names configuration and weights.

        Raises:
            UserError: the directory holds another kind of model.
            UserError: it is no model directory, or a damaged one.
        """
        stored, model = store.describe(directory), store.load(directory)
        if not isinstance(model, Clip):
            raise UserError(
                f"{directory}: holds a {stored.config.kind}, not a CLIP model; set clip (and "
                "system.ranker) to a directory that holds one"
            )
        source = {"kind": "clip", "directory": directory}
        return cls(model, TextReader.of(directory), stored.digest, source)

    @classmethod
    def of_checkpoint(cls, config: OpenClip) -> "ClipEmbedder":
        """Read an open_clip checkpoint; its digest is the SHA-256 of the file.

        Raises:
            UserError: unknown architecture, or a file that is not there or does not fit it.
        """
        model = PretrainedClip(config.architecture, config.checkpoint)
        digest = sha256_file(config.checkpoint)
        return cls(model, lambda texts: model.tokens(list(texts)), digest, config.model_dump())

    def images(self, pictures: Tensor, *, batch: int = 128) -> Tensor:
        """Unit-norm embeddings (n, D) float32 of pictures (n, H, W, 3) uint8."""
        with torch.no_grad():
            parts = [
                self.model.encode_image(from_bytes(part)) for part in torch.split(pictures, batch)
            ]
        return torch.cat(parts)

    def texts(self, captions: Sequence[str], *, batch: int = 256) -> Tensor:
        """Unit-norm embeddings (n, D) float32 of captions."""
        with torch.no_grad():
            parts = [
                self.model.encode_text(part) for part in torch.split(self.text(captions), batch)
            ]
        return torch.cat(parts)

    def protocol(self) -> Mapping[str, str]:
        """Which CLIP model judged."""
        return {**self.source, "digest": self.digest}
