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
class ClipEmbedder:
    """A frozen CLIP model with the tokenizer it was trained with."""

    model: Clip
    tokenizer: Tokenizer
    text_length: int
    name: str
    digest: str

    @classmethod
    def load(cls, directory: str) -> "ClipEmbedder":
        """Read a model directory of kind `clip`.

        Raises:
            EvaluationError: the directory holds another kind of model.
        """
        model = store.load(directory)
        if not isinstance(model, Clip):
            raise EvaluationError(f"{directory}: holds no CLIP model; set clip to one that does")
        stored = store.describe(directory)
        return cls(
            model=model,
            tokenizer=Tokenizer.load(directory),
            text_length=text_length_of(stored, directory),
            name=stored.config.kind,
            digest=stored.digest,
        )

    def images(self, pictures: Tensor, *, batch: int = 128) -> Tensor:
        """Unit-norm embeddings (n, D) float32 of pictures (n, H, W, 3) uint8."""
        with torch.inference_mode():
            parts = [self.model.encode_image(from_bytes(part)) for part in pictures.split(batch)]
        return torch.cat(parts).float()

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (n, L) of captions."""
        return self.tokenizer(captions, self.text_length)

    def texts(self, captions: Sequence[str], *, batch: int = 256) -> Tensor:
        """Unit-norm embeddings (n, D) float32 of captions."""
        with torch.inference_mode():
            parts = [self.model.encode_text(part) for part in self.tokens(captions).split(batch)]
        return torch.cat(parts).float()

    def protocol(self) -> Mapping[str, str]:
        """Which CLIP model judged."""
        return {"kind": self.name, "digest": self.digest}


def text_length_of(stored: store.Stored, directory: str) -> int:
    """Tokens per caption that a text-conditional model was trained with.

    Raises:
        EvaluationError: the model directory does not say, so it takes no captions.
    """
    if stored.text_length is None:
        raise EvaluationError(f"{directory}: takes no captions (no text_length in config.json)")
    return stored.text_length
