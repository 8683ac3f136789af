"""What a control is trained with, checked against each other: its base and its hints."""

from functools import partial

from torch import Tensor

from data_pipeline.dataset import Dataset
from data_pipeline.hints.fidelity import control_fidelity
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.hint import Detector, HintRecord
from models import store
from models.base_record import BaseRecord
from models.config import ModelConfig
from models.diffusion.control.network import ControlConfig
from models.first_stage import FirstStage
from models.text_source import TextSource
from trainer.tasks.base_model import describe_base
from trainer.tasks.config import TaskConfig
from trainer.tasks.control import ControlTask, ControlTaskConfig


def open_control(
    model: ModelConfig,
    task: ControlTask,
    dataset: Dataset,
    tokenizer: Tokenizer | None,
    text_encoder: TextSource | None,
) -> tuple[BaseRecord, HintRecord]:
    """The records of base and hint; the task gets what it measures.

    Raises:
        UserError: the base or its captions are others than the recipe's, or the hints do not fit.
    """
    assert isinstance(model, ControlConfig), "the task has built it"
    hint = hint_record(model, dataset)
    check_base(model, task.base.describe(), tokenizer, text_encoder)
    score = None if hint.detector is None else partial(hint_score, hint.detector)
    task.watch(lambda count: dataset.batch(range(min(count, len(dataset)))), score)
    return task.base.record(), hint


def of_base(task: TaskConfig, stage: FirstStage) -> FirstStage:
    """The first stage of a run; of a control with the scaling that its base was trained with.

    Raises:
        UserError: the base was trained on latents of another first stage, or on images.
    """
    if not isinstance(task, ControlTaskConfig):
        return stage
    directory, base = describe_base(task.base)
    if base.first_stage is None or base.first_stage.digest != stage.digest:
        theirs = "images" if base.first_stage is None else f"those of {base.first_stage.model}"
        raise UserError(
            f"data.url: has latents of {stage.model}, and task.base ({directory}) was trained on "
            f"{theirs}; a control is trained on what its base was trained on"
        )
    return stage.model_copy(update={"scaling": base.first_stage.scaling})


def hint_record(model: ControlConfig, dataset: Dataset) -> HintRecord:
    """The hint of a data set, refused unless the model reads such."""
    member = dataset.hint
    if member is None:
        raise UserError(
            "data.hint is not set: a control is trained on hints; name the member of the set that "
            "holds them"
        )
    channels, size = member.record.channels, member.size
    if channels != model.hint.channels:
        raise UserError(
            f"data.hint.channels is {channels} and model.hint.channels is {model.hint.channels}; "
            "make them equal"
        )
    if size != model.hint_size:
        raise UserError(
            f"the hints have {size} pixels, and the model reads {model.hint_size} "
            f"(model.base.image_size {model.base.image_size} x model.hint.stride "
            f"{model.hint.stride}); set model.hint.stride to the ratio"
        )
    return member.record


def hint_score(detector: Detector, hints: Tensor, images: Tensor) -> float:
    """How well images follow hints, by the detector that made these."""
    return control_fidelity(detector, hints, images).mean


def check_base(
    model: ControlConfig,
    base: store.ModelInfo,
    tokenizer: Tokenizer | None,
    encoder: TextSource | None,
) -> None:
    """Refuse a base of other settings or captions than the recipe's."""
    if base.config != model.base:
        ours, theirs = model.base.model_dump(), base.config.model_dump()
        keys = ours.keys() | theirs.keys()
        other = sorted(key for key in keys if ours.get(key) != theirs.get(key))
        raise UserError(
            f"model.base is not the network of task.base: {', '.join(other)} differ; copy `model` "
            f"of its {store.CONFIG} to model.base"
        )
    own = None if tokenizer is None else sha256(tokenizer.model_bytes)
    if own is not None and base.tokenizer_sha256 not in (None, own):
        raise UserError(
            "data.text.tokenizer: is not that of task.base; name the tokenizer.model in its "
            "directory"
        )
    theirs_encoder = base.text_encoder
    if encoder is None or theirs_encoder is None:
        return
    if encoder.digest != theirs_encoder.digest:
        raise UserError(
            "task.condition: its text encoder is not that of task.base, which is "
            f"{theirs_encoder.location}"
        )
