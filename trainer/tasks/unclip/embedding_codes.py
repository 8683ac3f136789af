"""Autoregressive prior of CLIP image embeddings (unCLIP, arXiv 2204.06125, 2.2)."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from safetensors.torch import load, save
from torch import Generator, Tensor, nn

from data_pipeline.batch import Batch
from mezzotint.common.embedding_scaling import IMAGE_EMBEDDING
from mezzotint.common.errors import UserError
from models.autoregressive.embedding_codec import CodecStatistics, measure
from models.autoregressive.embedding_prior import EmbeddingPrior, similarity
from models.diffusion.condition import Condition
from models.text_source import TextSource
from trainer.rng import dropped_rows
from trainer.task import Engines, Loss, Step, Task
from trainer.tasks.conditioning.captions import ClipTextCondition
from trainer.tasks.conditioning.inputs import ConditionInputs, TextFeatures
from trainer.tasks.frozen_text import LazyTextEncoder
from trainer.tasks.targets import ImageEmbeddings

RUNS = 8
"""Parts of a set that statistics are measured over, evenly spaced."""
CHUNK = 256
"""Samples that are read together."""


class EmbeddingCodesConfig(BaseModel, frozen=True, extra="forbid"):
    """Cross-entropy of the codes of embeddings, one after the other.

    Components, ranges of buckets and levels of similarity are measured before training over
    `measured` samples of the set, levels over the first `compared` of them.
    """

    kind: Literal["embedding_codes"]
    target: ImageEmbeddings = ImageEmbeddings(kind="image_embeddings")
    condition: ClipTextCondition
    measured: int = Field(default=16_384, gt=1)
    compared: int = Field(default=4096, gt=1)

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.compared > self.measured:
            raise ValueError("compared: no more samples than are measured")
        return self

    @property
    def text_encoder(self) -> TextSource:
        """The frozen encoder of the captions."""
        return self.condition.encoder

    def build(self, model: nn.Module) -> "EmbeddingCodes":
        """The task.

        Raises:
            UserError: the model is no autoregressive prior of embeddings.
        """
        if not isinstance(model, EmbeddingPrior):
            raise UserError("task.kind: embedding_codes trains model.kind embedding_prior")
        return EmbeddingCodes(self, model)


class EmbeddingCodes(Task):
    """Trains an autoregressive prior on CLIP embeddings."""

    def __init__(self, config: EmbeddingCodesConfig, model: EmbeddingPrior) -> None:
        self._config = config
        self._model: EmbeddingPrior = model
        self._text_encoder = LazyTextEncoder(config.text_encoder)

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        clean = self._config.target.clean(batch, step.rng)
        whole = self._condition(batch, clean, step.rng, self._text_encoder)
        dropped = dropped_rows(len(clean), self._config.condition.drop, step.rng, clean.device)
        given = whole if dropped is None else without_text_of(whole, dropped)
        # the level is that of the pair, also where the caption is dropped
        codec = self._model.codec
        level, codes = codec.level(_similarity(batch, whole)), codec.encode(clean)
        yield Loss("model", engines["model"](given.clip_caption, level, codes))

    def fit(self, read: Callable[[Sequence[int]], Batch], samples: int) -> str:
        """Components of the set's embeddings and levels of their similarity to captions."""
        config, rng = self._config, Generator("cpu")
        encoder = LazyTextEncoder(config.text_encoder)
        vectors, similarities = [], []
        for number, rows in enumerate(chunks(samples, config.measured)):
            batch = read(rows)
            clean = config.target.clean(batch, rng)
            vectors.append(clean)
            if number * CHUNK < config.compared:
                whole = self._condition(batch, clean, rng, encoder)
                similarities.append(_similarity(batch, whole))
        found = measure(
            torch.cat(vectors),
            torch.cat(similarities),
            components=self._model.config.components,
            levels=self._model.config.levels,
        )
        return base64.b64encode(save(vars(found))).decode("ascii")

    def use_fit(self, text: str) -> None:
        self._model.codec.use(CodecStatistics(**load(base64.b64decode(text))))

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Nothing: embeddings are no images."""
        return {}

    def _condition(
        self, batch: Batch, clean: Tensor, rng: Generator, encoder: LazyTextEncoder
    ) -> Condition:
        """The captions of a batch."""

        def encode_text(captions: Sequence[str]) -> TextFeatures:
            return encoder(captions, clean.device)

        inputs = ConditionInputs(batch, clean, None, rng, encode_text, _no_images)  # type: ignore[arg-type]
        return self._config.condition.eval_condition(Condition(), inputs)


def without_text_of(condition: Condition, rows: Tensor) -> Condition:
    """The same with empty captions in the rows (B,) bool."""
    none = condition.without_text

    def mixed(given: Tensor | None, empty: Tensor | None) -> Tensor | None:
        if given is None or empty is None:
            return given
        return torch.where(rows.view((-1,) + (1,) * (given.ndim - 1)), empty, given)

    return replace(
        condition,
        features=mixed(condition.features, none.features),
        features_mask=mixed(condition.features_mask, none.features_mask),
        text_embedding=mixed(condition.text_embedding, none.text_embedding),
    )


def chunks(samples: int, wanted: int) -> Iterator[Sequence[int]]:
    """Positions of about `wanted` of so many samples, in few runs: each shard is fetched whole."""
    if samples <= wanted:
        runs = [range(samples)]
    else:
        length = max(1, wanted // RUNS)
        starts = (number * (samples - length) // (RUNS - 1) for number in range(RUNS))
        runs = [range(start, start + length) for start in starts]
    for run in runs:
        for first in range(0, len(run), CHUNK):
            yield run[first : first + CHUNK]


def _similarity(batch: Batch, condition: Condition) -> Tensor:
    assert condition.text_embedding is not None, "of clip_text"
    return similarity(batch.array(IMAGE_EMBEDDING), condition.text_embedding)


def _no_images(images: Tensor) -> Tensor:
    raise AssertionError("captions are read, not images")
