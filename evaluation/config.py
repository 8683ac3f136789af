"""The kinds of evaluation: what is evaluated, with which settings, against which images."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from data_pipeline.config import DataConfig, ImageConfig, LabelConfig, Selection
from evaluation.metrics.features import EfficientNetLite0, FeatureConfig
from mezzotint.common.preprocessing import Filter, Fit
from mezzotint.inference.config import (
    CascadeSystem,
    ClipSource,
    DenoiserSystem,
    SystemConfig,
    UnclipSystem,
)
from mezzotint.inference.imagic.config import ImagicConfig
from mezzotint.inference.preprocessing import image_config, stated_in
from mezzotint.inference.runtime import Precision

Part = Literal["train", "test"]


class ReferenceConfig(BaseModel, frozen=True, extra="forbid"):
    """Real images of a split, and their captions, prepared as the model's training images were."""

    url: str = Field(min_length=1)
    split: str = "composition"
    where: dict[str, tuple[str | int, ...]] = {}
    fit: Fit = "pad"
    """By default the model's own; `pad` for a model that records none. As `filter`."""
    filter: Filter = "bicubic"
    force_preprocessing: bool = False
    """Take `fit` and `filter` also where they are not the model's."""
    cache: str | None = None

    def image_config(self, model: str, size: int) -> ImageConfig:
        """How images are prepared for the model in a directory, whose network takes `size`.

        Raises:
            UserError: `fit` or `filter` are stated, are not the model's and not forced.
        """
        setting = self.setting
        stated = stated_in(
            self,
            force=self.force_preprocessing,
            prefix=f"{setting}.",
            force_name=f"{setting}.force_preprocessing: true",
        )
        return image_config(model, size, stated)

    @property
    def setting(self) -> str:
        """Its key in an evaluation."""
        return "reference"

    def data_config(
        self, part: Part, image: ImageConfig, label: LabelConfig | None = None
    ) -> DataConfig:
        """One part of the split; with a label, only the images of its values."""
        where = dict(self.where)
        if label is not None and label.values is not None:
            where[label.attribute] = label.values
        return DataConfig(
            url=self.url,
            select=(Selection(split=self.split, part=part, where=where),),
            image=image,
            label=label,
            cache=self.cache,
        )


def image_protocol(image: ImageConfig) -> dict[str, object]:
    """How real images were prepared, for a protocol."""
    return {"image_size": image.size, "fit": image.fit, "filter": image.filter}


class ReconstructedImages(ReferenceConfig, frozen=True, extra="forbid"):
    """The images that are encoded and decoded."""

    part: Part = "test"
    limit: int | None = Field(default=None, gt=0)
    """How many images, in an order fixed by the seed; None is all of them."""

    @property
    def setting(self) -> str:
        return "images"


class Limits(BaseModel, frozen=True, extra="forbid"):
    """How many captions of each part are evaluated; None is all of them, 0 leaves the part out.

    Which ones is fixed by the seed: a larger limit has the same captions and some more.
    """

    test: int | None = Field(default=220, ge=0)
    train: int | None = Field(default=100, ge=0)


class _Evaluation(BaseModel, frozen=True, extra="forbid"):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    seed: int = Field(default=0, ge=0)
    batch: int = Field(default=32, gt=0)
    """Images generated or reconstructed at a time: part of the protocol, as the seed is."""
    precision: Precision = "auto"


class TextToImageConfig(_Evaluation, frozen=True, extra="forbid"):
    """Images that a system generates for captions: exact match, CLIP, Fréchet distance."""

    kind: Literal["text_to_image"]
    system: SystemConfig
    reference: ReferenceConfig
    """Both parts of its split are candidates of the exact match."""
    clip: ClipSource
    """The CLIP model of CLIP score and retrieval."""
    limit: Limits = Limits()
    samples_per_caption: int = Field(default=1, gt=0)
    retrieval_choices: int = Field(default=50, gt=1)
    """Captions that the retrieval chooses among, the right one included."""
    features: FeatureConfig = EfficientNetLite0()
    grid_images: int = Field(default=24, ge=0)
    """Captions per part on the image grids: the first ones, not the best ones."""


class ReconstructionConfig(_Evaluation, frozen=True, extra="forbid"):
    """Images encoded and decoded by an autoencoder: PSNR, SSIM, Fréchet distance, rate."""

    kind: Literal["reconstruction"]
    autoencoder: str = Field(min_length=1)
    """Its model directory."""
    images: ReconstructedImages
    features: FeatureConfig | None = EfficientNetLite0()
    """Network of the Fréchet distance between reconstructions and originals; None leaves it out."""
    grid_images: int = Field(default=16, ge=0)
    """Images on the grid: the first ones in the seed's order, not the best ones."""


class ClassConditionalConfig(_Evaluation, frozen=True, extra="forbid"):
    """Images generated for classes: how often an independent classifier names the right class."""

    kind: Literal["class_conditional"]
    system: Annotated[DenoiserSystem, Field(discriminator="kind")]
    classes: LabelConfig
    """As `data.label` of the model's recipe."""
    reference: ReferenceConfig
    """Real images: the classifier is trained on the train part and tested on the test part."""
    guidance_scales: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Each is evaluated; `system.sampling.guidance` is not read."""
    samples_per_class: int = Field(default=20, gt=0)
    """At each guidance scale, from the same seeds."""
    batch: int = Field(default=50, gt=0)
    features: FeatureConfig = EfficientNetLite0()
    """Network whose features the classifier reads, and the Fréchet distance."""
    grid_images: int = Field(default=6, gt=0)
    """Images per class and guidance scale on the grid: the first ones, not the best ones."""


class ControlEvaluationConfig(_Evaluation, frozen=True, extra="forbid"):
    """Images generated with a control and without: how well they follow the hints."""

    kind: Literal["control"]
    system: Annotated[DenoiserSystem, Field(discriminator="kind")]
    """With one control, whose hints a detector makes."""
    reference: ReferenceConfig
    """Hints are made of the images of its test part."""
    limit: int | None = Field(default=100, gt=0)
    """How many images, in an order fixed by the seed; None is all of them."""
    empty_captions: bool = False
    """Leave the captions out, so that a sample can know the image by its hint alone."""
    samples_per_image: int = Field(default=1, gt=0)
    """Each from a seed of its own; an image's value is their mean."""
    grid_images: int = Field(default=16, ge=0)
    """Images on the grid: the first ones, not the best ones."""


class CascadeReportConfig(_Evaluation, frozen=True, extra="forbid"):
    """What the super-resolution stages of a cascade read, against what they were trained on.

    Generated images of captions, and real ones of the same captions, both as the stage's
    augmentation leaves them.
    """

    kind: Literal["cascade"]
    system: Annotated[CascadeSystem | UnclipSystem, Field(discriminator="kind")]
    reference: ReferenceConfig
    part: Part = "train"
    """Of the split: the settings of a cascade are chosen on training captions."""
    limit: int | None = Field(default=100, gt=0)
    """How many images, in an order fixed by the seed; None is all of them."""
    grid_images: int = Field(default=8, ge=0)
    """Captions on the grid: the first ones, not the best ones."""


class EmbeddingPriorConfig(_Evaluation, frozen=True, extra="forbid"):
    """CLIP image embeddings that the prior of an unCLIP system generates from captions.

    They are compared with those of the captions' images, and so are the captions' own embeddings.
    """

    kind: Literal["embedding_prior"]
    system: UnclipSystem
    reference: ReferenceConfig
    """Captions are of its test part; images of both parts are candidates of the nearest one."""
    limit: int | None = Field(default=220, gt=0)
    """How many captions, in an order fixed by the seed; None is all of them."""
    batch: int = Field(default=64, gt=0)


class Replacement(BaseModel, frozen=True, extra="forbid"):
    """An edit by words: from a caption to the same with `new` in place of `old`."""

    old: str = Field(min_length=1)
    new: str = Field(min_length=1)

    @property
    def name(self) -> str:
        return f"{self.old} to {self.new}"


class EditsConfig(_Evaluation, frozen=True, extra="forbid"):
    """Edits of real images by an unCLIP system: variations, and text diffs.

    What an edited image shows is read from the real image nearest to it (exact match).
    """

    kind: Literal["edits"]
    system: UnclipSystem
    reference: ReferenceConfig
    """Images of its test part are varied; those of both parts are edited by words, and candidates
    of the nearest image."""
    attributes: tuple[str, ...] = ()
    """Attributes of which a variation is counted to keep each, and any."""
    variations: int = Field(default=100, ge=0)
    """Images that are varied, in an order fixed by the seed."""
    steps: int = Field(default=25, gt=0)
    """Of DDIM, each way."""
    start: float = Field(default=0.03, ge=0, le=0.9)
    """Timestep at which images are taken as noisy ones."""
    eta: float = Field(default=1.0, gt=0)
    """Of the DDIM steps of a variation, from the noise of the image by inversion."""
    guidance: float = Field(default=1.0, ge=0)
    """Of the turned embedding, in text diffs; the inversion has none."""
    replacements: tuple[Replacement, ...] = ()
    trials: int = Field(default=120, gt=1)
    """Images edited by each replacement, in an order fixed by the seed: the first half chooses
    theta, the other half is scored at it."""
    thetas: tuple[float, ...] = Field(default=(0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6), min_length=1)
    """Parts of the angle to the difference of both captions by which an embedding is turned."""
    grid_images: int = Field(default=8, ge=0)
    """Images of each kind of edit on the grids: the first ones, not the best ones."""


class ImagicEvaluationConfig(_Evaluation, frozen=True, extra="forbid"):
    """Real images edited by Imagic: whether they reach their target text, near to their source."""

    kind: Literal["imagic"]
    system: SystemConfig
    clip: ClipSource
    """The CLIP model that chooses eta and retrieves the target."""
    reference: ReferenceConfig
    """Images of both parts of its split are edited."""
    retrieval_choices: int = Field(default=50, gt=1)
    """Captions that the retrieval chooses among, the target included."""
    replacements: tuple[Replacement, ...] = Field(min_length=1)
    edits: int = Field(default=20, gt=0)
    """Images that are edited, of each replacement in turn, in an order fixed by the seed."""
    etas: tuple[float, ...] = Field(default=(0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0), min_length=1)
    settings: ImagicConfig = ImagicConfig()
    grid_images: int = Field(default=12, ge=0)
    """Edits on the grid: the first ones, not the best ones."""


def _require_kind(value: object) -> object:
    """Refuse a mapping without `kind`, with the kind that its other keys suggest."""
    if isinstance(value, Mapping) and "kind" not in value:
        keys = {"autoencoder": "reconstruction", "classes": "class_conditional"}
        kind = next((keys[key] for key in keys if key in value), "text_to_image")
        raise ValueError(f"an evaluation names its kind: add `kind: {kind}`")
    return value


EvaluationConfig = Annotated[
    Annotated[
        TextToImageConfig
        | ReconstructionConfig
        | ClassConditionalConfig
        | ControlEvaluationConfig
        | CascadeReportConfig
        | EmbeddingPriorConfig
        | EditsConfig
        | ImagicEvaluationConfig,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_require_kind),
]
