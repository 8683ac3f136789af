"""What a recipe says of an open_clip checkpoint; imports pydantic only."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field


def _three(value: object) -> object:
    return (value,) * 3 if isinstance(value, int | float) else value


Channels = Annotated[tuple[float, float, float], BeforeValidator(_three)]
"""A number per channel of RGB, of values in [0, 1]; one number is taken for all three."""
Positive = Annotated[float, Field(gt=0)]
Deviations = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(_three)]
Interpolation = Literal["bicubic", "bilinear", "random"]
ResizeMode = Literal["shortest", "longest", "squash"]


class ImagePreprocessing(BaseModel, frozen=True, extra="forbid"):
    """How images are brought to a tower's size and normalised, by open_clip's names.

    `shortest` resizes the shorter side and crops the centre, `longest` resizes the longer side and
    pads with `fill_color`, `squash` resizes both sides. `random` is a choice of training alone: it
    resizes as `bicubic`, as open_clip does.
    """

    mean: Channels
    std: Deviations
    interpolation: Interpolation
    resize_mode: ResizeMode = "shortest"
    fill_color: int = Field(default=0, ge=0, le=255)


class OpenClipCheckpoint(BaseModel, frozen=True, extra="forbid"):
    """An open_clip checkpoint on disk; nothing is downloaded.

    What a checkpoint does not say of itself is taken from the settings here, else from `tag`, else
    from open_clip_config.json beside the weights.
    """

    kind: Literal["open_clip"] = "open_clip"
    architecture: str | None = Field(default=None, min_length=1)
    """open_clip's name for it; None takes that of open_clip_config.json beside the weights."""
    checkpoint: str = Field(min_length=1)
    """A safetensors file, a torch state dict, or a folder of the Hugging Face hub's layout."""
    tag: str | None = Field(default=None, min_length=1)
    """open_clip's name of the weights, such as `openai` or `laion2b_s32b_b82k`."""
    quick_gelu: bool | None = None
    """Whether the towers compute QuickGELU instead of GELU, as OpenAI's do."""


class OpenClipImages(OpenClipCheckpoint, frozen=True, extra="forbid"):
    """A checkpoint whose image tower is used too."""

    mean: Channels | None = None
    std: Deviations | None = None
    interpolation: Interpolation | None = None
    resize_mode: ResizeMode | None = None
    fill_color: int | None = Field(default=None, ge=0, le=255)

    @property
    def preprocessing(self) -> dict[str, object]:
        """The settings of preprocessing that are set."""
        found = {name: getattr(self, name) for name in ImagePreprocessing.model_fields}
        return {name: value for name, value in found.items() if value is not None}
