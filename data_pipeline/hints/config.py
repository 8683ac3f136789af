"""Detectors of hints and their settings. Imports nothing heavier than pydantic."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from data_pipeline.hints.opencv import LIBRARY, library_version
from mezzotint.common.errors import UserError
from mezzotint.common.hint import Detector


class _Base(BaseModel, frozen=True, extra="forbid"):
    @property
    def channels(self) -> int:
        return 1

    @property
    def record(self) -> Detector:
        """Kind, library, its version and all settings."""
        settings = self.model_dump()
        kind = settings.pop("kind")
        return Detector(kind=kind, library=LIBRARY, version=library_version(), settings=settings)


class Edges(_Base, frozen=True, extra="forbid"):
    """Canny edges (Canny 1986): lines of one pixel, 0 or 1."""

    kind: Literal["edges"] = "edges"
    low: int = Field(default=100, ge=0)
    """Gradient (sum over x and y of OpenCV's 3 x 3 Sobel filter, levels 0 to 255) from which a
    pixel continues an edge."""
    high: int = Field(default=200, gt=0)
    """Gradient from which a pixel begins an edge."""
    blur: float = Field(default=0.0, ge=0, le=100)
    """Standard deviation in pixels of a Gaussian filter before; 0: none."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high ({self.high}); lower it")
        return self


class Sobel(_Base, frozen=True, extra="forbid"):
    """The largest gradient of the three colours (Sobel's 3 x 3 filter), a soft edge of 0 to 1."""

    kind: Literal["sobel"] = "sobel"
    blur: float = Field(default=0.0, ge=0, le=100)
    gain: float = Field(default=1.0, gt=0)
    """Factor on the gradient, of which 1 is a step from black to white along an axis."""


class Silhouette(_Base, frozen=True, extra="forbid"):
    """The object on a plain background, 0 or 1.

    Background is what is connected with the border of the image and differs from the border's
    median colour by at most `tolerance` levels in every channel. For photographs give masks of
    your own.
    """

    kind: Literal["silhouette"] = "silhouette"
    tolerance: int = Field(default=16, ge=0, le=255)


class Colours(_Base, frozen=True, extra="forbid"):
    """The mean colours of a grid of `cells` x `cells`: 3 channels."""

    kind: Literal["colours"] = "colours"
    cells: int = Field(default=8, gt=0, le=1024)

    @property
    def channels(self) -> int:
        return 3


class Scribble(_Base, frozen=True, extra="forbid"):
    """Few thick strokes along the main edges, as a person draws them: 0 or 1.

    Canny edges of the blurred image; short ones are dropped, the others made of straight pieces.
    Lengths are shares of the side of the image.
    """

    kind: Literal["scribble"] = "scribble"
    blur: float = Field(default=0.015, ge=0, le=1)
    low: int = Field(default=40, ge=0)
    high: int = Field(default=120, gt=0)
    shortest: float = Field(default=0.2, ge=0, le=4)
    """Length of the shortest stroke."""
    simplify: float = Field(default=0.015, ge=0, le=1)
    """Distance by which a piece may miss the edge (Douglas-Peucker)."""
    thickness: float = Field(default=0.03, gt=0, le=1)

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high ({self.high}); lower it")
        return self


DetectorConfig = Annotated[
    Edges | Sobel | Silhouette | Colours | Scribble, Field(discriminator="kind")
]
DetectorKind = Literal["edges", "sobel", "silhouette", "colours", "scribble"]
KINDS: tuple[str, ...] = get_args(DetectorKind)
_ADAPTER: TypeAdapter[DetectorConfig] = TypeAdapter(DetectorConfig)


def detector_config(kind: str, settings: Mapping[str, Any]) -> DetectorConfig:
    """A detector with some of its settings.

    Raises:
        UserError: no such detector, a setting that it does not have, or an impossible value.
    """
    if kind not in KINDS:
        raise UserError(f"hint '{kind}': there is no such detector; there are {', '.join(KINDS)}")
    known = _ADAPTER.validate_python({"kind": kind}).model_dump()
    del known["kind"]
    for name in settings:
        if name not in known:
            raise UserError(f"{kind}.{name}: {kind} has no such setting; it has {_shown(known)}")
    try:
        return _ADAPTER.validate_python({**settings, "kind": kind})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {message}") from error


def of_settings(kind: str, assignments: Sequence[str]) -> DetectorConfig:
    """A detector with settings as `low=100`.

    Raises:
        UserError: as `detector_config`, or no assignment.
    """
    settings = {}
    for each in assignments:
        name, found, value = each.partition("=")
        if not found:
            raise UserError(f"--set {each}: is not NAME=VALUE; write for instance --set low=100")
        settings[name.strip()] = yaml.safe_load(value)
    return detector_config(kind, settings)


def of_record(record: Detector) -> DetectorConfig:
    """The detector of a record, whatever version of its library it names.

    Raises:
        UserError: a record of another version of this project.
    """
    return detector_config(record.kind, record.settings)


def _shown(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} ({value})" for name, value in settings.items())
