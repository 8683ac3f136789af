"""A recipe: everything that defines one training run, validated whole before anything starts."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from data_pipeline.config import DataConfig
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import check_no_credentials
from models.config import ModelConfig, sides_multiple
from trainer.averages.config import EmaConfig, ExponentialEma
from trainer.config_utils import renamed
from trainer.low_precision.gradient_scaling import PerBlockScaling, WholeScaling
from trainer.low_precision.powersgd import PowerSGDConfig, WholeGradients
from trainer.optimizers.schedules import OptimizerConfig
from trainer.tasks.config import TaskConfig
from trainer.tasks.denoising import DenoisingConfig

Validated = TypeVar("Validated")
Precision = Literal["auto", "fp32", "bf16", "fp16", "autocast_bf16", "autocast_fp16"]
Update = Literal["after_backward", "in_backward"]
GradientScaling = Annotated[WholeScaling | PerBlockScaling, Field(discriminator="kind")]
Compression = Annotated[WholeGradients | PowerSGDConfig, Field(discriminator="kind")]


class EngineConfig(BaseModel, frozen=True, extra="forbid"):
    """How DeepSpeed runs the parts; its JSON is derived from this (see `trainer.engine_config`)."""

    zero: Literal[0, 1, 2, 3] = 0
    zero_per_part: Mapping[str, Literal[0, 1, 2, 3]] = Field(default_factory=dict)
    """ZeRO stages of single parts, by name, where they differ from `zero`."""
    precision: Precision = "auto"
    master_dtype: Literal["fp32", "bf16"] = "fp32"
    """What the optimizer updates under bf16: fp32 copies, or the 16-bit weights themselves."""
    update: Update = "after_backward"
    """In backward each weight is updated as soon as its gradient is computed: 6 bytes a weight."""
    fp32_logits: bool = False
    """Output projections (linear layers outside the blocks) compute in fp32 also under autocast."""
    gradient_scaling: GradientScaling = WholeScaling()
    compression: Compression = WholeGradients()
    """Of the gradients that processes exchange."""
    processes: int | None = Field(default=None, gt=0)
    """Data-parallel processes on one machine; by default one per GPU, one on a CPU."""
    compile: bool = False
    """torch.compile of every block (regional compilation), on GPUs and CPUs."""
    activation_checkpointing: bool = False
    """Blocks compute their activations again in backward instead of keeping them."""

    def zero_of(self, part: str) -> Literal[0, 1, 2, 3]:
        return self.zero_per_part.get(part, self.zero)


class CheckpointConfig(BaseModel, frozen=True, extra="forbid"):
    """When to write resumable checkpoints, and how many to keep."""

    every: int = Field(default=1000, gt=0)
    keep: int = Field(default=2, gt=0)


class LogConfig(BaseModel, frozen=True, extra="forbid"):
    """How often to record metrics and preview images, in optimizer steps; previews None = never."""

    every: int = Field(default=20, gt=0)
    previews: int | None = Field(default=None, gt=0)
    preview_samples: int = Field(default=8, gt=0)


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """One training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    description: str = ""
    seed: int = Field(default=0, ge=0)
    steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    """Global batch: samples per optimizer step over all processes."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Samples per forward; by default a process takes its whole share at once."""
    model: ModelConfig
    task: TaskConfig
    data: DataConfig
    optimizer: OptimizerConfig
    optimizers: Mapping[str, OptimizerConfig] = Field(default_factory=dict)
    """Optimizers of single parts, by name, where they differ from `optimizer`."""
    engine: EngineConfig = EngineConfig()
    ema: EmaConfig | None = ExponentialEma()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    publish: str | None = Field(default=None, min_length=1)
    """Where a copy of the model directory goes at the end, such as s3://bucket/models/base."""

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> "Recipe":
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(
                f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}"
            )
        return self

    @model_validator(mode="after")
    def _captions_are_not_mirrored(self) -> "Recipe":
        task = self.task
        if isinstance(task, DenoisingConfig) and task.text_encoder:
            self.data.check_flipped_captions()
        return self

    @model_validator(mode="after")
    def _buckets_fit_the_model(self) -> "Recipe":
        image = self.data.image
        if image is None or image.buckets is None:
            return self
        sides = sides_multiple(self.model)
        if sides is None:
            raise ValueError(
                "data.image.buckets: this model takes images of one size; leave buckets out"
            )
        if image.buckets.multiple % sides:
            raise ValueError(
                f"data.image.buckets.multiple: {image.buckets.multiple} is no multiple of {sides}, "
                f"by which the model divides sides; set it to {sides} or a multiple"
            )
        return self

    def optimizer_of(self, part: str) -> OptimizerConfig:
        return self.optimizers.get(part, self.optimizer)

    def micro_batch_for(self, world: int) -> int:
        """Samples per forward of one process.

        Raises:
            UserError: the global batch cannot be shared evenly by `world` processes.
        """
        micro = self.micro_batch or self.batch // world
        if self.micro_batch is None and self.batch % world:
            raise UserError(
                f"batch: {self.batch} samples cannot be shared by {world} processes; set batch to "
                f"a multiple of {world}"
            )
        if self.batch % (micro * world):
            raise UserError(
                f"batch: {self.batch} samples cannot be shared by {world} processes in "
                f"micro-batches of {micro}; set batch to a multiple of {micro * world}, or "
                "micro_batch"
            )
        return micro


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply dotted overrides (`optimizer.lr.peak=1e-4`), validate it.

    Raises:
        UserError: unreadable file, or an unknown key or impossible value, named by its full path.
    """
    tree = read_tree(path)
    if "stages" in tree:
        raise UserError(f"{path}: is a pipeline, not a recipe; use `mezzotint run {path}`")
    for override in overrides:
        apply_override(tree, override)
    return validate(Recipe.model_validate, tree, str(path))


def validate(parse: Callable[[object], Validated], tree: object, source: str) -> Validated:
    """Parse a plain tree by pydantic; `source` names it in messages."""
    try:
        return parse(tree)
    except ValidationError as error:
        raise UserError(explain(error, source, tree)) from error


def read_tree(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, with dotted overrides."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a UTF-8 text file") from error
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold a mapping of keys, like `name: my_run`")
    _refuse_credentials(tree, str(path))
    for override in overrides:
        apply_override(tree, override)
    return tree


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as a string; recipes mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key of `tree` in place; the value is read as YAML."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r}: an override looks like key.path=value")
    *parents, last = key.split(".")
    node: dict[str, Any] | list[Any] = tree
    for parent in parents:
        if isinstance(node, dict):
            child = node.setdefault(parent, {})
        else:
            child = node[_index(node, parent, key)]
        if not isinstance(child, dict | list):
            raise UserError(f"{key}: {parent} holds a single value, it has no keys of its own")
        node = child
    try:
        read = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: {value!r} is not a valid YAML value") from error
    _refuse_credentials(read, key)
    if isinstance(node, dict):
        node[last] = read
    else:
        node[_index(node, last, key)] = read


def _index(elements: list[Any], part: str, key: str) -> int:
    """A part of a dotted key as the number of an element."""
    if not part.isdecimal() or int(part) >= len(elements):
        raise UserError(
            f"{key}: {part} is no element of a list of {len(elements)}; they are numbered from 0"
        )
    return int(part)


def _refuse_credentials(value: object, where: str) -> None:
    """No URL may hold any: settings are copied into run directories, job scripts and trackers."""
    match value:
        case Mapping():
            for key, each in value.items():
                _refuse_credentials(each, f"{where}: {key}")
        case list():
            for each in value:
                _refuse_credentials(each, where)
        case str():
            try:
                check_no_credentials(value)
            except ValueError as error:
                raise UserError(f"{where}: {error}") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def explain(error: ValidationError, source: str, tree: object = None) -> str:
    """All faults of a validation, one per line, each with its full key path in `tree`."""
    lines = []
    for fault in error.errors():
        keys, context = _keys(fault["loc"], tree), fault.get("ctx", {})
        message = fault["msg"].removeprefix("Value error, ")
        match fault["type"]:
            case "extra_forbidden":
                message = _unknown_key(".".join(keys))
            case "union_tag_invalid":
                keys.append(context["discriminator"].strip("'"))
                message = f"there is no '{context['tag']}'; choose {context['expected_tags']}"
        lines.append(f"{source}: {'.'.join(keys) or '(whole file)'}: {message}")
    return "\n".join(lines)


def _unknown_key(path: str) -> str:
    new = renamed(path)
    if new is not None:
        return f"was renamed to {new}; use the new name"
    return "unknown key; remove it or check its spelling"


def _keys(location: tuple[int | str, ...], tree: object) -> list[str]:
    """The keys as written in the recipe, without the union tags that pydantic inserts."""
    keys, node = [], tree
    for depth, part in enumerate(location):
        if isinstance(node, Mapping):
            inner = depth < len(location) - 1
            if part not in node and (inner or part == node.get("kind")):
                continue
            node = node.get(part)
        elif isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
            node = node[part]
        keys.append(str(part))
    return keys


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
