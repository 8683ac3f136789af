"""Autoregressive: the transformer prior over text and image tokens (DALL-E, arXiv 2102.12092)."""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.autoregressive.decoding import Sampling, generate
from models.autoregressive.prior import Prior, weighted
from trainer.rng import drop_text, replace_codes
from trainer.task import Engines, Loss, Step, Task


class AutoregressiveConfig(BaseModel, frozen=True, extra="forbid"):
    """Cross-entropy of the next token, `text_weight` on text and the rest on the image.

    `caption_drop` of the captions are empty in training, for classifier-free guidance;
    `code_noise` of the image tokens the network reads are replaced by random ones (what it must
    predict is untouched), which reduces overfitting to a small set.
    """

    kind: Literal["autoregressive"]
    codes: str = "codes"
    text_weight: float = Field(default=1 / 8, ge=0, le=1)
    caption_drop: float = Field(default=0.0, ge=0, lt=1)
    code_noise: float = Field(default=0.0, ge=0, lt=1)

    def build(self, model: nn.Module) -> "Autoregressive":
        """The task over `model`.

        Raises:
            UserError: the model is not a prior.
        """
        if not isinstance(model, Prior):
            raise UserError("task.kind: autoregressive trains model.kind prior")
        return Autoregressive(self, model)


class Autoregressive(Task):
    """Trains a prior on captions and derived image tokens."""

    def __init__(self, config: AutoregressiveConfig, model: Prior) -> None:
        self._config = config
        self._model: Prior = model

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        config = self._config
        text = drop_text(batch.tokens, config.caption_drop, step.rng)
        codes = batch.array(config.codes).flatten(1).long()
        vocab = self._model.config.image_vocab
        read = replace_codes(codes, config.code_noise, vocab, step.rng)
        losses = engines["model"](text, read, codes)
        value = weighted(losses, config.text_weight)
        yield Loss("model", value, {"text": losses.text, "image": losses.image})

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Token maps as grey images."""
        codes = generate(self._model, batch.tokens, rng, sampling=Sampling())
        height, width = self._model.config.grid
        grey = codes.view(-1, 1, height, width).float() / (self._model.config.image_vocab - 1)
        return {"tokens": (grey * 2 - 1).expand(-1, 3, -1, -1)}
