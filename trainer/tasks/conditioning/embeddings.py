"""The CLIP embeddings that a run reads, checked against each other and given to its task."""

import logging
from typing import TypeVar

from pydantic import BaseModel

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from mezzotint.common.embedding_scaling import (
    IMAGE_EMBEDDING,
    TEXT_EMBEDDING,
    EmbeddingRecord,
    EmbeddingScaling,
    described,
    require_clip,
    require_equal_embeddings,
)
from mezzotint.common.errors import UserError
from models.text_source import TextSource
from trainer.tasks.base_model import describe_base
from trainer.tasks.conditioning.captions import ClipTextCondition
from trainer.tasks.conditioning.clip_image import ClipImageCondition
from trainer.tasks.conditions import (
    ConditionConfig,
    NoCondition,
    SeveralConditions,
    caption_conditions,
)
from trainer.tasks.targets import ImageEmbeddings

log = logging.getLogger(__name__)
T = TypeVar("T", bound=BaseModel)
_DERIVE = "`mezzotint data derive SET OUT --clip MODEL`"


def with_embeddings(task: BaseModel, data: DataConfig) -> DataConfig:
    """The data settings with the image embeddings that a task reads, if any."""
    if not _of_images(task):
        return data
    arrays = tuple(dict.fromkeys((*data.arrays, IMAGE_EMBEDDING)))
    return data.model_copy(update={"arrays": arrays})


def embedding_record(
    task: BaseModel, dataset: Dataset, encoder: TextSource | None
) -> EmbeddingRecord | None:
    """The embeddings that a run is trained on, as its model directory records them; None: none.

    `encoder` is the frozen text encoder of the task, with its digest.

    A model that training starts from keeps its own normalisation, unless the task states one.

    Raises:
        UserError: the set was not made by `data derive --clip`; sets, the text encoder or settings
            are of another CLIP or normalisation, or a model that training starts from of another
            CLIP.
    """
    readers = _of_images(task)
    texts = _reads_captions(task)
    if not readers and not texts:
        return None
    names = (IMAGE_EMBEDDING, *((TEXT_EMBEDDING,) if texts else ()))
    records = {}
    for name in names if readers else (TEXT_EMBEDDING,):
        manifest = dataset.holder(f"{name}.npy")
        if manifest.embeddings is None:
            raise UserError(
                f"'{manifest.name}' has an array '{name}', but does not say which CLIP made it; "
                f"derive it with {_DERIVE}"
            )
        records[f"the set '{manifest.name}'"] = manifest.embeddings
    require_equal_embeddings(records)
    record = next(iter(records.values()))
    _check_text_encoder(task, record, encoder)
    stated = [each.scaling for each in readers if each.scaling is not None]
    for other in stated[1:]:
        if not other.equals(stated[0]):
            raise UserError(
                f"task.target.scaling is {described(stated[0])} and task.condition.scaling "
                f"{described(other)}; make them equal"
            )
    scaling = stated[0] if stated else _of_start(task, record) or record.scaling
    return record.model_copy(update={"scaling": scaling})


def check_embedding_size(model: BaseModel, record: EmbeddingRecord) -> None:
    """Refuse a network that reads or generates embeddings of another length.

    Raises:
        UserError: with both lengths and the key.
    """
    reads = getattr(model, "image_embedding", None)
    for key, settings in (("model.dim", model), ("model.image_embedding.dim", reads)):
        dim = getattr(settings, "dim", None)
        if dim not in (None, record.scaling.dim):
            raise UserError(
                f"{key} is {dim}, and embeddings of {record.model} have {record.scaling.dim} "
                f"values; set {key}={record.scaling.dim}"
            )


def with_scaling(task: T, scaling: EmbeddingScaling) -> T:
    """The task with the normalisation of the embeddings that its target and conditions read."""
    update: dict[str, object] = {}
    target, condition = getattr(task, "target", None), getattr(task, "condition", None)
    if isinstance(target, ImageEmbeddings):
        update["target"] = target.model_copy(update={"scaling": scaling})
    if condition is not None:
        update["condition"] = _scaled(condition, scaling)
    return task.model_copy(update=update)


def _scaled(condition: ConditionConfig, scaling: EmbeddingScaling) -> ConditionConfig:
    match condition:
        case ClipImageCondition():
            return condition.model_copy(update={"scaling": scaling})
        case SeveralConditions(conditions=several):
            changed = tuple(_scaled(each, scaling) for each in several)
            return condition.model_copy(update={"conditions": changed})
        case _:
            return condition


def _of_images(task: BaseModel) -> tuple[ImageEmbeddings | ClipImageCondition, ...]:
    """What a task reads image embeddings for."""
    target, condition = getattr(task, "target", None), getattr(task, "condition", NoCondition())
    found = [each for each in caption_conditions(condition) if isinstance(each, ClipImageCondition)]
    return (*((target,) if isinstance(target, ImageEmbeddings) else ()), *found)


def _reads_captions(task: BaseModel) -> bool:
    """Whether a task reads CLIP's embeddings of captions from the set."""
    conditions = caption_conditions(getattr(task, "condition", NoCondition()))
    return any(isinstance(each, ClipTextCondition) and each.cached for each in conditions)


def _check_text_encoder(
    task: BaseModel, record: EmbeddingRecord, encoder: TextSource | None
) -> None:
    """Refuse captions that another CLIP reads than the one that embedded the images."""
    conditions = caption_conditions(getattr(task, "condition", NoCondition()))
    reads = any(isinstance(each, ClipTextCondition) for each in conditions)
    if encoder is None or not reads or encoder.digest == record.text_digest:
        return
    raise UserError(
        f"task.condition.encoder: is the CLIP {str(encoder.digest)[:12]} ({encoder.location}), but "
        f"the embeddings of the set were made by {record.text_digest[:12]} ({record.model}); "
        f"derive them again with {_DERIVE}, or name that one"
    )


def _of_start(task: BaseModel, record: EmbeddingRecord) -> EmbeddingScaling | None:
    """The normalisation of the model that training starts from, which the network knows.

    Raises:
        UserError: that model is of another CLIP.
    """
    start = getattr(task, "start", None)
    if start is None:
        return None
    known = describe_base(start, key="task.start")[1].embeddings
    if known is None:
        return None
    require_clip(known, record.digest, f"the CLIP of the set ({record.model})", "task.start")
    if not known.scaling.equals(record.scaling):
        log.warning(
            "task.start (%s): embeddings are normalised as it was trained, by %s, and not by %s of "
            "the set",
            *(start, described(known.scaling), described(record.scaling)),
        )
    return known.scaling
