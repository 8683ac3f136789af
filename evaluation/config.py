"""What is drawn, with which settings, and what it is judged against."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from evaluation.features import EfficientNetLite0, FeatureConfig
from models.autoregressive.decoding import Sampling
from models.systems.cascade import StageSampling

Precision = Literal["auto", "fp32", "bf16"]
"""Arithmetic while drawing; `auto` is bf16 where the processor multiplies bf16, else fp32."""


class OpenClip(BaseModel, frozen=True, extra="forbid"):
    """A pretrained open_clip checkpoint on disk, where a CLIP model directory could stand."""

    kind: Literal["open_clip"] = "open_clip"
    architecture: str = Field(min_length=1)
    """open_clip's name for it. OpenAI's weights belong to the `-quickgelu` names: the plain ones
    accept the file and compute other features."""
    checkpoint: str = Field(min_length=1)
    """A safetensors file or torch state dict; nothing is downloaded."""


def _form(value: object) -> str:
    return "directory" if isinstance(value, str) else "open_clip"


ClipSource = Annotated[
    Annotated[str, Tag("directory")] | Annotated[OpenClip, Tag("open_clip")],
    Discriminator(_form),
]
"""A CLIP model: a model directory, or a mapping that names an open_clip checkpoint."""


class DalleSystem(BaseModel, frozen=True, extra="forbid"):
    """Transformer prior and dVAE decoder; a CLIP model ranks the candidates of each caption."""

    kind: Literal["dalle"] = "dalle"
    prior: str
    dvae: str
    ranker: ClipSource | None = None
    """CLIP model; without it there is one candidate per caption."""
    candidates: int = Field(default=16, gt=0)
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _candidates_need_a_ranker(self) -> Self:
        if self.ranker is None and self.candidates > 1:
            raise ValueError("candidates can only be ranked by a CLIP model: set ranker")
        return self


class CascadeSystem(BaseModel, frozen=True, extra="forbid"):
    """Text-conditional base decoder and super-resolution model."""

    kind: Literal["cascade"] = "cascade"
    base: str
    upsampler: str
    base_sampling: StageSampling = StageSampling(steps=25, guidance=2.0)
    upsampler_sampling: StageSampling = StageSampling(steps=8, level=0.15)


SystemConfig = Annotated[DalleSystem | CascadeSystem, Field(discriminator="kind")]


class ReferenceConfig(BaseModel, frozen=True, extra="forbid"):
    """The captions that are asked and the real images that answers are compared with.

    Both parts of `split` are candidates of the exact match; the size of the images is the system's.
    """

    url: str = Field(min_length=1)
    split: str = "composition"
    where: dict[str, tuple[str | int, ...]] = {}
    fit: Literal["pad", "crop"] = "pad"
    filter: Literal["bicubic", "lanczos", "box", "bilinear"] = "bicubic"
    cache: str | None = None


class Limits(BaseModel, frozen=True, extra="forbid"):
    """How many captions of each part are asked; None is all of them, 0 leaves the part out.

    Which ones is fixed by the seed: a larger limit asks the same captions and some more.
    """

    test: int | None = Field(default=220, ge=0)
    train: int | None = Field(default=100, ge=0)


class EvaluationConfig(BaseModel, frozen=True, extra="forbid"):
    """One evaluation of one system."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(default=0, ge=0)
    system: SystemConfig
    reference: ReferenceConfig
    clip: ClipSource
    """The CLIP model that judges."""
    limit: Limits = Limits()
    samples_per_caption: int = Field(default=1, gt=0)
    batch: int = Field(default=32, gt=0)
    """Captions drawn at a time, from one generator: part of the protocol, as the seed is."""
    retrieval_choices: int = Field(default=50, gt=1)
    """Captions that the retrieval chooses among, the right one included."""
    features: FeatureConfig = EfficientNetLite0()
    precision: Precision = "auto"
    shown: int = Field(default=24, ge=0)
    """Captions per part on the picture sheets: the first ones asked, not the best ones."""
