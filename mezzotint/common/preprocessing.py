"""How images are prepared for a network: recorded with its weights and with its derived sets."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from pydantic import BaseModel, Field

from mezzotint.common.errors import UserError

Fit = Literal["pad", "crop"]
Filter = Literal["bicubic", "lanczos", "box", "bilinear"]
log = logging.getLogger(__name__)


class Preprocessing(BaseModel, frozen=True, extra="forbid"):
    """How an image file becomes the input of a network.

    It is padded or cropped to a square, resized to `size` pixels, and normalised: values in [0, 1]
    minus `mean`, divided by `std`, which gives [-1, 1] for every network of this project.
    """

    size: int = Field(gt=0)
    fit: Fit = "pad"
    filter: Filter = "bicubic"
    flip: bool = False
    """Whether training mirrored images at random. Images that feed a trained model never are."""
    mean: float = Field(default=0.5, ge=0.5, le=0.5)
    std: float = Field(default=0.5, ge=0.5, le=0.5)


@dataclass(frozen=True)
class StatedPreprocessing:
    """What a command or a file states of the images that feed a model; the rest is the model's."""

    values: Mapping[str, object] = field(default_factory=dict)
    """Of `size`, `fit` and `filter`."""
    force: bool = False
    """Use the values also where they differ from the model's."""
    prefix: str = "--image-"
    """What stands before a name in a message."""
    force_name: str = "--force-preprocessing"

    @classmethod
    def of_options(
        cls, fit: str | None, filter_name: str | None, *, force: bool
    ) -> "StatedPreprocessing":
        """Of the options of a command."""
        values = {"fit": fit, "filter": filter_name}
        return cls({name: value for name, value in values.items() if value is not None}, force)

    def resolve(self, where: str, record: Preprocessing | None, size: int) -> Preprocessing:
        """The preprocessing of images that feed the model in directory `where`.

        `record` is the model's own, None where it has none; `size` is that of its network.

        Raises:
            UserError: another one is stated, and it is not forced.
        """
        if record is None and not {"fit", "filter"} & self.values.keys():
            _warn_of_no_record(where)
        own = (record or Preprocessing(size=size)).model_copy(update={"size": size, "flip": False})
        for name, value in self.values.items():
            fixed = record is not None or name == "size"
            if fixed and value != getattr(own, name) and not self.force:
                raise UserError(
                    f"{self.prefix}{name} is {value}, but {where} was trained on images of "
                    f"{name} {getattr(own, name)}; leave it out, or add {self.force_name}"
                )
        return Preprocessing.model_validate({**own.model_dump(), **self.values})


MODELS_OWN = StatedPreprocessing()
"""Nothing is stated: images are prepared as the model records it."""


@cache
def _warn_of_no_record(where: str) -> None:
    log.warning(
        "%s: records no preprocessing (written by an earlier version, or imported without one): "
        "images are padded to a square and resized by bicubic; where it was trained otherwise, "
        "state image fit and filter",
        where,
    )


def require_equal(
    records: Mapping[str, Preprocessing | None], *, force: bool, setting: str
) -> None:
    """Refuse models that work together and were trained on images prepared differently.

    `records` are those of models by name; sizes may differ, and None is not compared.

    Raises:
        UserError: the first difference, with both values.
    """
    known = [(name, record) for name, record in records.items() if record is not None]
    for name, record in known[1:]:
        first_name, first = known[0]
        for key in ("fit", "filter"):
            one, other = getattr(first, key), getattr(record, key)
            if one != other and not force:
                raise UserError(
                    f"{first_name} was trained on images of {key} {one} and {name} on {key} "
                    f"{other}; choose models that fit, or set {setting}"
                )
