"""Priors over the levels of a VQ-VAE-2: codes of one level, given those of the coarser ones."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.autoencoders.levels import level_prefix
from models.autoregressive.decoding import Sampling, generate
from models.autoregressive.prior import Prior
from trainer.rng import drop_text, replace_codes
from trainer.task import Engines, Loss, Step, Task


class CoarseLevel(BaseModel, frozen=True, extra="forbid"):
    """A coarser level's array of the derived set: its name, vocabulary and number of codes."""

    codes: str
    vocab: int = Field(gt=1)
    length: int = Field(gt=0)


class LevelPriorConfig(BaseModel, frozen=True, extra="forbid"):
    """Cross-entropy of one level's codes (arXiv 1906.00446, 3.2).

    The model's text_vocab is the caption's (2 without captions) plus the `given` vocabularies, its
    text_length the caption's (1, empty) plus their lengths. `caption_drop` of the captions are
    empty in training, for guidance; the codes stay. `code_noise` of all codes the network reads,
    coarser and its own, are replaced by random ones: this reduces overfitting, and
    reliance on sampled coarser codes that may be wrong.
    """

    kind: Literal["level_prior"]
    codes: str
    given: tuple[CoarseLevel, ...] = ()
    caption_drop: float = Field(default=0.0, ge=0, lt=1)
    code_noise: float = Field(default=0.0, ge=0, lt=1)

    @property
    def given_vocab(self) -> int:
        """Tokens of the text vocabulary that stand for coarser codes."""
        return sum(each.vocab for each in self.given)

    @property
    def given_length(self) -> int:
        """Positions of the text that hold coarser codes."""
        return sum(each.length for each in self.given)

    def build(self, model: nn.Module) -> "LevelPrior":
        """The task over `model`.

        Raises:
            UserError: the model is not a prior, or is too small for the given levels.
        """
        if not isinstance(model, Prior):
            raise UserError("task.kind: level_prior trains model.kind prior")
        config = model.config
        if config.text_vocab <= self.given_vocab or config.text_length <= self.given_length:
            raise UserError(
                f"task.given: {self.given_length} codes of {self.given_vocab} kinds do not fit "
                f"model.text_length {config.text_length} and model.text_vocab {config.text_vocab}"
            )
        return LevelPrior(self, model)


class LevelPrior(Task):
    """Trains a prior on one level's codes."""

    def __init__(self, config: LevelPriorConfig, model: Prior) -> None:
        self._config = config
        self._model: Prior = model

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        """Cross-entropy of one micro-batch, in nats per code."""
        codes = batch.array(self._config.codes).flatten(1).long()
        prefix = self._prefix(batch, step.rng)
        vocab = self._model.config.image_vocab
        read = replace_codes(codes, self._config.code_noise, vocab, step.rng)
        logits = engines["model"](prefix, read)
        value = F.cross_entropy(logits.image.float().flatten(0, 1), codes.flatten())
        yield Loss("model", value, {"image": value.detach()})

    def _prefix(self, batch: Batch, rng: Generator | None) -> Tensor:
        """Captions and coarser codes of a batch; with a generator, augmented as in training."""
        config, shape = self._config, self._model.config
        coarser = [batch.array(each.codes).flatten(1).long() for each in config.given]
        if rng is not None:
            coarser = [
                replace_codes(codes, config.code_noise, each.vocab, rng)
                for codes, each in zip(coarser, config.given, strict=True)
            ]
        if batch.text is None:
            empty = (len(batch.keys), shape.text_length - config.given_length)
            text = torch.zeros(empty, dtype=torch.int64, device=batch.array(config.codes).device)
        else:
            text = batch.text if rng is None else drop_text(batch.text, config.caption_drop, rng)
        first = shape.text_vocab - config.given_vocab
        return level_prefix(text, coarser, first, [each.vocab for each in config.given])

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Code maps as grey images."""
        codes = generate(self._model, self._prefix(batch, None), rng, sampling=Sampling())
        height, width = self._model.config.grid
        grey = codes.view(-1, 1, height, width).float() / (self._model.config.image_vocab - 1)
        return {"codes": (grey * 2 - 1).expand(-1, 3, -1, -1)}
