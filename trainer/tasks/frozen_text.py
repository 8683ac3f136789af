"""The frozen encoder of a task's captions."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel
from torch import Tensor

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.text.t5_tokenizer import tokenizer_of
from mezzotint.common.errors import UserError
from mezzotint.common.text_features import TEXT_FEATURES
from models import frozen_text
from models.frozen_text import FrozenTextEncoder
from models.text_source import TextSource, identity
from trainer.tasks.conditions import FeaturesCondition, NoCondition, TextFeatures, as_conditions


def with_cached_features(task: BaseModel, data: DataConfig) -> DataConfig:
    """The data settings with the text features that a task's condition reads, if any."""
    conditions = as_conditions(getattr(task, "condition", NoCondition()))
    if not any(isinstance(each, FeaturesCondition) and each.cached for each in conditions):
        return data
    return data.model_copy(update={"arrays": tuple(dict.fromkeys((*data.arrays, TEXT_FEATURES)))})


def check_cached_features(dataset: Dataset, encoder: TextSource | None) -> None:
    """Refuse text features of another encoder than the condition's.

    Raises:
        UserError: with both digests.
    """
    cached = dataset.text_features
    if cached is None or encoder is None:
        return
    wanted = identity(encoder)
    if cached.record.encoder != wanted:
        raise UserError(
            f"{cached.url}: its text features were made by another text encoder "
            f"({cached.record.encoder[:12]}) than task.condition.encoder ({wanted[:12]}, "
            f"{encoder.location}); derive them again with that one"
        )


class LazyTextEncoder:
    """Captions to features, by an encoder that is read from disk when it is first needed.

    So a recipe can be checked on a machine that has no copy of it. It is no part of the task: not
    trained, not in checkpoints, and every process holds its own.
    """

    def __init__(self, source: TextSource) -> None:
        self._source = source
        self._opened: tuple[FrozenTextEncoder, Tensor] | None = None

    def __call__(self, captions: Sequence[str], device: torch.device) -> TextFeatures:
        """The captions' features on a device, and those of an empty one, which are kept.

        Raises:
            UserError: there is no such encoder.
        """
        if self._opened is None:
            reader = frozen_text.load(self._source, tokenizer_of).to(device)
            self._opened = reader, reader(("",))[0]
        reader, empty = self._opened
        return TextFeatures(reader(captions), empty)
