"""The images that feed trained models, prepared as those were that they were trained on."""

from collections.abc import Callable, Mapping
from typing import assert_never

from pydantic import BaseModel

from data_pipeline.config import DataConfig, ImageConfig
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing, require_equal
from mezzotint.inference.config import (
    CascadeSystem,
    DalleSystem,
    DiffusionSystem,
    HierarchySystem,
    LatentSystem,
    SystemConfig,
    UnclipSystem,
)
from models import store

NAMES = ("size", "fit", "filter")


def image_config(
    directory: str, size: int, stated: StatedPreprocessing = MODELS_OWN
) -> ImageConfig:
    """How images are prepared that feed the model in a directory, whose network takes `size`.

    Raises:
        UserError: no model directory, or another preprocessing than its own that is not forced.
    """
    found = stated.resolve(directory, store.describe(directory).preprocessing, size)
    return ImageConfig(size=found.size, fit=found.fit, filter=found.filter)


def stated_in(
    settings: BaseModel | None, *, force: bool, prefix: str, force_name: str
) -> StatedPreprocessing:
    """What settings state themselves, defaults left out."""
    values = {} if settings is None else settings.model_dump(include=set(NAMES), exclude_unset=True)
    return StatedPreprocessing(values, force, prefix, force_name)


def prepared(
    data: DataConfig,
    images: Callable[[StatedPreprocessing], ImageConfig],
    stated: StatedPreprocessing | None = None,
) -> DataConfig:
    """The data settings of images that an encoder reads; `images` is how it takes them.

    `stated` is what a command states of them; None: what `data.image` states.

    Raises:
        UserError: another preprocessing is stated than the encoder's own and not forced, or a flip.
    """
    if data.image is not None and data.image.flip:
        raise UserError("data.image.flip: images are mirrored in training only; leave it out")
    stated = stated or stated_in(
        data.image,
        force=data.force_preprocessing,
        prefix="data.image.",
        force_name="data.force_preprocessing: true",
    )
    image = images(stated)
    if data.image is not None:
        image = image.model_copy(update={"max_pixels": data.image.max_pixels})
    return data.model_copy(update={"image": image, "force_preprocessing": stated.force})


def mirroring(data: DataConfig) -> DataConfig:
    """The data settings of a set whose mirrored images are encoded too, which it records."""
    assert data.image is not None, "set by `prepared`"
    return data.model_copy(update={"image": data.image.model_copy(update={"flip": True})})


def image_model(system: SystemConfig) -> str:
    """The model directory of a system that gives its images their size and preprocessing."""
    match system:
        case DalleSystem():
            return system.dvae
        case HierarchySystem():
            return system.autoencoder
        case CascadeSystem():
            return list(system.upsampling.values())[-1]
        case UnclipSystem():
            return (system.decoder, *system.upsamplers)[-1]
        case DiffusionSystem() | LatentSystem():
            return system.model
        case _:
            assert_never(system)


def require_equal_preprocessing(directories: Mapping[str, str], *, force: bool) -> None:
    """Refuse a system of models that were trained on images prepared differently.

    Raises:
        UserError: the first difference.
    """
    records = {
        f"system.{name} ({directory})": store.describe(directory).preprocessing
        for name, directory in directories.items()
    }
    require_equal(records, force=force, setting="system.force_preprocessing")
