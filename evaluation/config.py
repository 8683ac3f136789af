"""What is drawn, with which settings, and what it is judged against."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from data_pipeline.config import DataConfig, ImageConfig, LabelConfig, Selection
from evaluation.features import EfficientNetLite0, FeatureConfig
from models.autoregressive.decoding import Sampling
from models.diffusion.sampling import DiffusionSampling
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


class _Ranked(BaseModel, frozen=True, extra="forbid"):
    """Draws candidates, of which a CLIP model chooses."""

    ranker: ClipSource | None = None
    """CLIP model; without it there is one candidate per caption."""
    candidates: int = Field(default=16, gt=0)
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _candidates_need_a_ranker(self) -> Self:
        if self.ranker is None and self.candidates > 1:
            raise ValueError("candidates can only be ranked by a CLIP model: set ranker")
        return self


class DalleSystem(_Ranked, frozen=True, extra="forbid"):
    """Transformer prior and the decoder of its codes; a CLIP model ranks each caption's candidates.

    `dvae` is the autoencoder whose codes the prior draws: a dVAE, or one with a single codebook,
    such as a VQ-GAN.
    """

    kind: Literal["dalle"] = "dalle"
    prior: str
    dvae: str


class HierarchySystem(_Ranked, frozen=True, extra="forbid"):
    """VQ-VAE-2 with a prior per level, the coarsest first. Guidance acts on the coarsest."""

    kind: Literal["hierarchy"] = "hierarchy"
    priors: tuple[str, ...] = Field(min_length=2)
    autoencoder: str


class CascadeSystem(BaseModel, frozen=True, extra="forbid"):
    """Text-conditional base decoder and super-resolution model."""

    kind: Literal["cascade"] = "cascade"
    base: str
    upsampler: str
    base_sampling: StageSampling = StageSampling(steps=25, guidance=2.0)
    upsampler_sampling: StageSampling = StageSampling(steps=8, level=0.15)


class DiffusionSystem(BaseModel, frozen=True, extra="forbid"):
    """One diffusion model that draws by itself; a noisy classifier can steer it to a class."""

    kind: Literal["diffusion"] = "diffusion"
    model: str
    classifier: str | None = None
    negative: str | None = None
    """Caption that guidance leads away from; the empty one if None."""
    sampling: DiffusionSampling = DiffusionSampling()

    @model_validator(mode="after")
    def _steered_by_something(self) -> Self:
        if self.sampling.classifier_scale and self.classifier is None:
            raise ValueError("sampling.classifier_scale: set classifier, a noisy_classifier")
        return self


SystemConfig = Annotated[
    DalleSystem | HierarchySystem | CascadeSystem | DiffusionSystem, Field(discriminator="kind")
]


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
