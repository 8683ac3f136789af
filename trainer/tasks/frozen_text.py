"""The frozen encoder of a task's captions."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel
from torch import Tensor

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.text.t5_tokenizer import tokenizer_of
from mezzotint.common.embedding_scaling import TEXT_EMBEDDING
from mezzotint.common.errors import UserError
from mezzotint.common.text_features import TEXT_FEATURES, TEXT_TOKENS
from models import frozen_text
from models.clip import EncodedCaptions
from models.frozen_text import FrozenTextEncoder
from models.text_source import TextSource, identity
from trainer.tasks.conditioning.captions import ClipTextCondition, FeaturesCondition
from trainer.tasks.conditioning.inputs import ClipTexts, TextFeatures
from trainer.tasks.conditions import NoCondition, caption_conditions


def text_encoder_of(task: BaseModel) -> TextSource | None:
    """The frozen encoder of a task's captions, if there is one."""
    found: TextSource | None = getattr(task, "text_encoder", None)
    return found


def with_cached_features(task: BaseModel, data: DataConfig) -> DataConfig:
    """The data settings with the arrays of captions that a task's condition reads, if any."""
    arrays: list[str] = []
    for each in caption_conditions(getattr(task, "condition", NoCondition())):
        if isinstance(each, FeaturesCondition) and each.cached:
            arrays += [TEXT_FEATURES]
        if isinstance(each, ClipTextCondition) and each.cached:
            arrays += [TEXT_FEATURES, TEXT_TOKENS, TEXT_EMBEDDING]
    if not arrays:
        return data
    return data.model_copy(update={"arrays": tuple(dict.fromkeys((*data.arrays, *arrays)))})


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
        self._opened: tuple[FrozenTextEncoder, Tensor | EncodedCaptions] | None = None

    def __call__(self, captions: Sequence[str], device: torch.device) -> TextFeatures:
        """The captions' features on a device, and those of an empty one, which are kept.

        Raises:
            UserError: there is no such encoder.
        """
        if self._opened is None:
            reader = frozen_text.load(self._source, tokenizer_of).to(device)
            self._opened = reader, _read(reader, ("",))
        reader, none = self._opened
        found = _read(reader, captions)
        clip = None
        if isinstance(found, EncodedCaptions) and isinstance(none, EncodedCaptions):
            clip = ClipTexts(found.mask, found.embedding, none.mask[0], none.embedding[0])
        return TextFeatures(_features(found), _features(none)[0], clip)


def _read(reader: FrozenTextEncoder, captions: Sequence[str]) -> Tensor | EncodedCaptions:
    return reader.encode(captions) if reader.projects else reader(captions)


def _features(found: Tensor | EncodedCaptions) -> Tensor:
    return found.features if isinstance(found, EncodedCaptions) else found
