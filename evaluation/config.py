"""What is drawn, with which settings, and what it is judged against."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from data_pipeline.config import DataConfig, ImageConfig, LabelConfig, Selection
from evaluation.metrics.features import EfficientNetLite0, FeatureConfig
from mezzotint.inference.config import ClipSource, DiffusionSystem, Precision, SystemConfig


class _Real(BaseModel, frozen=True, extra="forbid"):
    """Real pictures of a set's split; their size is that of what is judged."""

    url: str = Field(min_length=1)
    split: str = "composition"
    where: dict[str, tuple[str | int, ...]] = {}
    fit: Literal["pad", "crop"] = "pad"
    filter: Literal["bicubic", "lanczos", "box", "bilinear"] = "bicubic"
    cache: str | None = None

    def part_of(
        self, part: Literal["train", "test"], size: int, label: LabelConfig | None = None
    ) -> DataConfig:
        """One part of the split at a size; with a label, the pictures of its values alone."""
        where = dict(self.where)
        if label is not None and label.values is not None:
            where[label.attribute] = label.values
        return DataConfig(
            url=self.url,
            select=(Selection(split=self.split, part=part, where=where),),
            image=ImageConfig(size=size, fit=self.fit, filter=self.filter),
            label=label,
            cache=self.cache,
        )


class ReferenceConfig(_Real, frozen=True, extra="forbid"):
    """The captions that are asked and the real images that answers are compared with.

    Both parts of `split` are candidates of the exact match; the size of the images is the system's.
    """


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


class PicturesConfig(_Real, frozen=True, extra="forbid"):
    """The pictures that are sent there and back; their size is the autoencoder's."""

    part: Literal["train", "test"] = "test"
    limit: int | None = Field(default=None, gt=0)
    """How many pictures, in an order fixed by the seed; None is all of them."""


class ReconstructionEvaluation(BaseModel, frozen=True, extra="forbid"):
    """One evaluation of one autoencoder, which it names instead of a system."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(default=0, ge=0)
    autoencoder: str = Field(min_length=1)
    """Its model directory."""
    pictures: PicturesConfig
    batch: int = Field(default=32, gt=0)
    features: FeatureConfig | None = EfficientNetLite0()
    """Network of the Fréchet distance between reconstructions and originals; None leaves it out."""
    precision: Precision = "auto"
    shown: int = Field(default=16, ge=0)
    """Pictures on the sheet: the first ones in the seed's order, not the best ones."""


class ClassEvaluation(BaseModel, frozen=True, extra="forbid"):
    """One evaluation of a class-conditional diffusion model, whose `classes` it names."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(default=0, ge=0)
    system: DiffusionSystem
    classes: LabelConfig
    """As `data.label` of the model's recipe."""
    reference: ReferenceConfig
    """Real pictures: the training part teaches the classifier, the held-out part tests it."""
    guidances: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Guidance scales, each judged; `system.sampling.guidance` is not read."""
    per_class: int = Field(default=20, gt=0)
    """Pictures drawn of each class at each scale, from the same seeds."""
    batch: int = Field(default=50, gt=0)
    features: FeatureConfig = EfficientNetLite0()
    """Network whose features the classifier reads, and the Fréchet distance."""
    precision: Precision = "auto"
    shown: int = Field(default=6, gt=0)
    """Pictures per class and scale on the sheet: the first ones, not the best ones."""


def _judges(value: object) -> str:
    match value:
        case ReconstructionEvaluation():
            return "of an autoencoder"
        case ClassEvaluation():
            return "of classes"
        case Mapping() if "autoencoder" in value:
            return "of an autoencoder"
        case Mapping() if "classes" in value:
            return "of classes"
        case _:
            return "of a system"


AnyEvaluation = Annotated[
    Annotated[EvaluationConfig, Tag("of a system")]
    | Annotated[ReconstructionEvaluation, Tag("of an autoencoder")]
    | Annotated[ClassEvaluation, Tag("of classes")],
    Discriminator(_judges),
]
"""Of a system that draws; of an `autoencoder`, or of a model of `classes`, where it names those."""
