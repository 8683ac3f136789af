"""Pipelines: stages that pass directories to each other, and their dependencies.

A stage's settings may hold `${NAME}`, the run directory of stage NAME; the reference is also the
dependency. `${NAME}` can also be one of the pipeline's own values, such as the URL of the data.
"""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, model_validator

from data_pipeline.config import DataConfig
from data_pipeline.hints.config import DetectorConfig
from evaluation.config import EvaluationConfig
from mezzotint.common.embedding_scaling import Normalization
from mezzotint.common.errors import UserError
from mezzotint.common.text_features import FeatureType
from mezzotint.inference.config import ClipSource
from mezzotint.inference.model_lookup import REFERENCE, substituted
from models.text_source import TextSource
from trainer.recipe import Recipe, flatten, read_tree, validate
from trainer.recipe import load as load_recipe

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class _BaseStage(BaseModel, frozen=True, extra="forbid"):
    after: tuple[str, ...] = ()
    """Stages to wait for besides those referenced."""
    cores: int | None = Field(default=None, gt=0)
    """CPU cores of this machine that the stage uses (None: all); stages run in parallel while they
    fit."""
    nodes: int | None = Field(default=None, gt=0)
    """Nodes of a train stage's SLURM job. None: the number in the cluster file."""


class TokenizerStage(_BaseStage, frozen=True, extra="forbid"):
    """Train a sentencepiece BPE model on a set's captions; writes `model/tokenizer.model`."""

    kind: Literal["tokenizer"]
    data: DataConfig
    vocab: int = Field(gt=0)
    character_coverage: float = Field(default=1.0, gt=0, le=1)
    """Share of the characters of the captions, most frequent first, that are pieces."""
    byte_fallback: bool = False
    """Spell other characters in 256 pieces of one byte each."""


class TrainStage(_BaseStage, frozen=True, extra="forbid"):
    """Train a recipe; writes a run directory with `model/`."""

    kind: Literal["train"]
    recipe: str
    set: Mapping[str, Any] = Field(default_factory=dict)
    """Dotted overrides of the recipe's keys."""


class DeriveStage(_BaseStage, frozen=True, extra="forbid"):
    """Encode a set's images by an autoencoder, its captions, or both by a CLIP, or make hints.

    Writes a set of codes or latents, of text features, of CLIP embeddings, or of hints. Images are
    prepared as those of the encoder's training were, and `data.image` need not be given; for hints
    it must be.
    """

    kind: Literal["derive"]
    data: DataConfig
    model: str | None = None
    hint: DetectorConfig | None = None
    """The detector, with its settings; its hints are the member of its `kind`."""
    text_encoder: TextSource | None = None
    """The frozen encoder whose features of the captions are kept."""
    text_dtype: FeatureType = "fp32"
    clip: ClipSource | None = None
    """The CLIP whose embeddings of images and captions are kept."""
    normalization: Normalization = "mean_std"
    """Of these image embeddings, as networks see them."""
    text_features: bool = False
    """Keep features of the captions by this CLIP's text tower too."""
    out: str | None = None
    """Directory or fsspec URL of the new set. None: `set/` in the stage's directory."""
    batch: int = Field(default=64, gt=0)
    latents: bool = False
    """Latents also of an autoencoder that has codes."""
    flip: bool = False
    """Encode the mirrored images too, for `data.flip_arrays`."""

    @model_validator(mode="after")
    def _one_way(self) -> "DeriveStage":
        ways = self.model, self.hint, self.text_encoder, self.clip
        if sum(each is not None for each in ways) != 1:
            raise ValueError("set one of model, which encodes images, clip, text_encoder and hint")
        if self.clip is None and (self.normalization != "mean_std" or self.text_features):
            raise ValueError("normalization and text_features belong to clip: set it")
        if self.flip and self.model is None and self.clip is None:
            raise ValueError("flip: encodes mirrored images; set model or clip, or leave it out")
        if self.hint is not None and self.data.image is None:
            raise ValueError("hints are made from images of a size: set data.image.size")
        return self


class EvaluateStage(_BaseStage, frozen=True, extra="forbid"):
    """Evaluate models; writes `evaluation.json`, `report.md` and image grids."""

    kind: Literal["evaluate"]
    evaluation: EvaluationConfig


class PageStage(_BaseStage, frozen=True, extra="forbid"):
    """Write the pipeline's result page, `index.html` in its run directory."""

    kind: Literal["page"]
    title: str


StageConfig = Annotated[
    TokenizerStage | TrainStage | DeriveStage | EvaluateStage | PageStage,
    Field(discriminator="kind"),
]


class Pipeline(BaseModel, frozen=True, extra="forbid"):
    """A directed acyclic graph of stages."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    description: str = ""
    values: Mapping[Annotated[str, Field(pattern=NAME)], str] = Field(default_factory=dict)
    """Values that stages share: `values.images=s3://bucket/set` replaces every `${images}`."""
    stages: Mapping[Annotated[str, Field(pattern=NAME)], StageConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Pipeline":
        both = sorted(set(self.values) & set(self.stages))
        if both:
            raise ValueError(f"values.{both[0]}: is also the name of a stage; rename one of them")
        return self

    @model_validator(mode="after")
    def _graph_is_acyclic(self) -> "Pipeline":
        for name, stage in self.stages.items():
            for reference in references(stage):
                if reference not in self.stages and reference not in self.values:
                    raise ValueError(
                        f"stages.{name}: refers to ${{{reference}}}, which is neither a stage nor "
                        f"a value; there are {', '.join([*self.stages, *self.values])}"
                    )
            after = sorted(set(stage.after) - set(self.stages))
            if after:
                raise ValueError(f"stages.{name}.after: {after[0]} is not a stage")
        try:
            stage_order(self)
        except CycleError as error:
            raise ValueError(f"stages: {' waits for '.join(error.args[1])}") from error
        return self


def references(stage: BaseModel) -> set[str]:
    """Every NAME in a `${NAME}` of a stage's settings."""
    return set(REFERENCE.findall(yaml.safe_dump(stage.model_dump(mode="json"), width=10**6)))


def dependencies(pipeline: Pipeline, name: str) -> list[str]:
    """The stages that stage `name` reads or waits for."""
    stage = pipeline.stages[name]
    return sorted((references(stage) & set(pipeline.stages)) | set(stage.after))


def stage_order(pipeline: Pipeline) -> list[str]:
    """The stages in a topological order."""
    graph = {name: dependencies(pipeline, name) for name in pipeline.stages}
    return list(TopologicalSorter(graph).static_order())


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file, apply dotted overrides, validate it with its recipes.

    Recipe paths are relative to the working directory.

    Raises:
        UserError: unreadable file, unknown key, impossible value, or a broken graph.
    """
    tree = read_tree(path, overrides)
    if "stages" not in tree:
        raise UserError(f"{path}: is not a pipeline, it has no stages; use `train` for a recipe")
    pipeline = validate(Pipeline.model_validate, tree, str(path))
    for name, stage in pipeline.stages.items():
        if isinstance(stage, TrainStage):
            try:
                stage_recipe(stage)
            except UserError as error:
                raise UserError(f"{path}: stages.{name}: {error}") from error
    return pipeline


def load_run_pipeline(root: Path) -> Pipeline:
    """The pipeline of a run directory."""
    return load_pipeline(root / "pipeline.yaml")


def stage_recipe(stage: TrainStage) -> Recipe:
    """The recipe of a train stage with the stage's overrides."""
    return load_recipe(stage.recipe, stage_overrides(stage))


def stage_overrides(stage: TrainStage) -> list[str]:
    """The settings of a train stage as dotted overrides."""
    return [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]}"
        for key, value in flatten(stage.set).items()
    ]


def resolve_stage(pipeline: Pipeline, name: str, root: Path) -> StageConfig:
    """Stage `name` with every `${NAME}` replaced by a value or by a stage's run directory."""
    directories = {each: str(root / each) for each in pipeline.stages}
    return substitute(pipeline.stages[name], {**pipeline.values, **directories})


def substitute(stage: StageConfig, names: Mapping[str, str]) -> StageConfig:
    """The stage with each `${NAME}` of `names` replaced; other references stay."""
    return type(stage).model_validate(substituted(stated(stage), names))


def stated(settings: BaseModel) -> dict[str, Any]:
    """Settings as a plain tree without those that were not given."""
    return settings.model_dump(mode="json", exclude_unset=True)
