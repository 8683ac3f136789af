"""Pipelines: stages that hand each other directories, and the order they can run in.

A stage's settings may hold `${NAME}`, the run directory of stage NAME; that reference is also the
dependence. A train stage therefore waits for exactly what it reads. `${NAME}` can also be one of
the pipeline's own values, such as where the data lies.
"""

import re
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from data_pipeline.config import DataConfig
from evaluation.config import AnyEvaluation
from mezzotint.common.errors import UserError
from trainer.recipe import Recipe, apply_override, explain, flatten, read_tree
from trainer.recipe import load as load_recipe

REFERENCE = re.compile(r"\$\{([^}]*)\}")
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class _Stage(BaseModel, frozen=True, extra="forbid"):
    after: tuple[str, ...] = ()
    """Stages to wait for besides those referred to."""
    cores: int | None = Field(default=None, gt=0)
    """Cores of this machine the stage uses; stages run side by side while they fit. None = all."""
    nodes: int | None = Field(default=None, gt=0)
    """Nodes of a cluster a train stage's job asks for. None = the cluster file's number."""


class TokenizerStage(_Stage, frozen=True, extra="forbid"):
    """Train a sentencepiece BPE model on a set's captions; leaves `model/tokenizer.model`."""

    kind: Literal["tokenizer"]
    data: DataConfig
    vocab: int = Field(gt=0)


class TrainStage(_Stage, frozen=True, extra="forbid"):
    """Train a recipe; leaves a run directory with `model/`."""

    kind: Literal["train"]
    recipe: str
    set: Mapping[str, Any] = Field(default_factory=dict)
    """Dotted overrides of the recipe's keys."""


class DeriveStage(_Stage, frozen=True, extra="forbid"):
    """Encode a set's images with a trained autoencoder; leaves a set of codes or latents."""

    kind: Literal["derive"]
    data: DataConfig
    model: str
    out: str | None = None
    """Where the set goes, a directory or an fsspec URL; `set/` in the stage's directory if None."""
    batch: int = Field(default=64, gt=0)


class EvaluateStage(_Stage, frozen=True, extra="forbid"):
    """Judge a system, or an autoencoder; leaves `evaluation.json`, samples and grids."""

    kind: Literal["evaluate"]
    evaluation: AnyEvaluation


class PageStage(_Stage, frozen=True, extra="forbid"):
    """Write the pipeline's result page, `index.html` in its run directory."""

    kind: Literal["page"]
    title: str


Stage = Annotated[
    TokenizerStage | TrainStage | DeriveStage | EvaluateStage | PageStage,
    Field(discriminator="kind"),
]


class Pipeline(BaseModel, frozen=True, extra="forbid"):
    """A directed acyclic graph of stages."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    description: str = ""
    values: Mapping[Annotated[str, Field(pattern=NAME)], str] = Field(default_factory=dict)
    """What stages share, by name: `values.images=s3://bucket/set` moves all of them there."""
    stages: Mapping[Annotated[str, Field(pattern=NAME)], Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_one_thing(self) -> "Pipeline":
        twice = sorted(set(self.values) & set(self.stages))
        if twice:
            raise ValueError(f"values.{twice[0]}: is the name of a stage too; rename one of them")
        return self

    @model_validator(mode="after")
    def _graph_is_sound(self) -> "Pipeline":
        for name, stage in self.stages.items():
            for needed in references(stage):
                if needed not in self.stages and needed not in self.values:
                    raise ValueError(
                        f"stages.{name}: refers to ${{{needed}}}, which is no stage and no value; "
                        f"there are {', '.join([*self.stages, *self.values])}"
                    )
            after = sorted(set(stage.after) - set(self.stages))
            if after:
                raise ValueError(f"stages.{name}.after: {after[0]} is no stage")
        try:
            order(self)
        except CycleError as error:
            raise ValueError(f"stages: {' waits for '.join(error.args[1])}") from error
        return self


def references(stage: BaseModel) -> set[str]:
    """Every name in a `${NAME}` of a stage's settings."""
    return set(REFERENCE.findall(yaml.safe_dump(stage.model_dump(mode="json"), width=10**6)))


def needs(pipeline: Pipeline, name: str) -> list[str]:
    """The stages whose directories stage `name` reads, and those it waits for."""
    stage = pipeline.stages[name]
    return sorted((references(stage) & set(pipeline.stages)) | set(stage.after))


def order(pipeline: Pipeline) -> list[str]:
    """The stages in an order in which each comes after what it needs."""
    graph = {name: needs(pipeline, name) for name in pipeline.stages}
    return list(TopologicalSorter(graph).static_order())


def load(path: str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file, apply dotted overrides, validate it whole.

    Recipe paths are relative to the working directory; the recipes are validated too.

    Raises:
        UserError: unreadable file, unknown key, impossible value, or a broken graph.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    if "stages" not in tree:
        raise UserError(f"{path}: is no pipeline, it has no stages; a recipe is for `train`")
    try:
        pipeline = Pipeline.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, str(path), tree)) from error
    for name, stage in pipeline.stages.items():
        if isinstance(stage, TrainStage):
            try:
                recipe_of(stage)
            except UserError as error:
                raise UserError(f"{path}: stages.{name}: {error}") from error
    return pipeline


def recipe_of(stage: TrainStage) -> Recipe:
    """The recipe of a train stage with the stage's settings."""
    return load_recipe(stage.recipe, overrides_of(stage))


def started(root: Path) -> Pipeline:
    """The pipeline a run directory was started with."""
    return load(root / "pipeline.yaml")


def resolve(pipeline: Pipeline, name: str, root: Path) -> Stage:
    """Stage `name` with every `${NAME}` replaced by a value or by a stage's run directory."""
    directories = {each: str(root / each) for each in pipeline.stages}
    return replace(pipeline.stages[name], {**pipeline.values, **directories})


def replace(stage: Stage, names: Mapping[str, str]) -> Stage:
    """The stage with each `${NAME}` of `names` replaced; others stay as they are."""

    def replaced(value: object) -> object:
        if isinstance(value, str):
            return REFERENCE.sub(lambda found: names.get(found[1], found[0]), value)
        if isinstance(value, Mapping):
            return {key: replaced(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [replaced(each) for each in value]
        return value

    return type(stage).model_validate(replaced(stage.model_dump(mode="json")))


def overrides_of(stage: TrainStage) -> list[str]:
    """A train stage's settings as dotted overrides."""
    return [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]}"
        for key, value in flatten(stage.set).items()
    ]
