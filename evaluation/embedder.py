"""A CLIP model directory as a judge of pictures and captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.text import Tokenizer
from evaluation.errors import EvaluationError
from evaluation.pixels import from_bytes
from models import store
from models.clip import Clip


@dataclass(frozen=True)
class TextReader:
    """Captions to the token ids of one model directory: its tokenizer, at its length."""

    tokenizer: Tokenizer
    length: int

    @classmethod
    def of(cls, directory: str) -> "TextReader":
        """The tokenizer that a model directory carries.

        Raises:
            ModelError: no tokenizer, or a changed one.
            EvaluationError: the directory does not say how long captions are.
        """
        tokenizer = Tokenizer(store.tokenizer_bytes(directory), f"{directory}/{store.TOKENIZER}")
        length = store.describe(directory).text_length
        if length is None:
            raise EvaluationError(f"{directory}: takes no captions (no text_length in config.json)")
        return cls(tokenizer, length)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Ids (n, length) int64."""
        return self.tokenizer(captions, self.length)


@dataclass(frozen=True)
class ClipEmbedder:
    """A frozen CLIP model with the tokenizer it was trained with."""

    model: Clip
    text: TextReader
    directory: str
    digest: str

    @classmethod
    def load(cls, directory: str) -> "ClipEmbedder":
        """Read a model directory of kind `clip`.

        Raises:
            EvaluationError: the directory holds another kind of model.
            ModelError: it is no model directory, or a damaged one.
        """
        stored, model = store.describe(directory), store.load(directory)
        if not isinstance(model, Clip):
            raise EvaluationError(
                f"{directory}: holds a {stored.config.kind}, not a CLIP model; set clip (and "
                "system.ranker) to a directory that holds one"
            )
        return cls(model, TextReader.of(directory), directory, stored.digest)

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
        return {"kind": "clip", "directory": self.directory, "digest": self.digest}
