"""What a path names: a training run, a model directory, or a system of a pipeline's run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from data_pipeline.config import LabelConfig
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.inference.config import (
    ClipSource,
    ControlSettings,
    DenoiserSystem,
    DiffusionSystem,
    LatentSystem,
    OpenClip,
    SystemConfig,
    UnclipSystem,
)
from models import store
from models.diffusion.control.network import ControlConfig

PIPELINE = "pipeline.yaml"
REFERENCE = re.compile(r"\$\{([^}]*)\}")
SYSTEM: TypeAdapter[SystemConfig] = TypeAdapter(SystemConfig)
CLIP: TypeAdapter[ClipSource] = TypeAdapter(ClipSource)


@dataclass(frozen=True)
class TrainedModel:
    """A model directory, and the labels of its classes if they are known."""

    directory: str
    labels: LabelConfig | None = None
    """How its training data gave the classes."""

    @property
    def classes(self) -> Mapping[str, int]:
        """Classes by name; empty where no names are known."""
        values = () if self.labels is None else self.labels.values or ()
        return {str(value): index for index, value in enumerate(values)}

    @property
    def name(self) -> str:
        """The run's name, or the directory's."""
        path = Path(self.directory)
        return path.name if path.name != "model" else path.absolute().parent.name

    def label(self, name: str) -> int:
        """The class of a name, or of a number.

        Raises:
            UserError: there is no such class.
        """
        if name in self.classes:
            return self.classes[name]
        if name.isdecimal():
            return int(name)
        if not self.classes:
            raise UserError(
                f"--class {name}: the names of classes are in the recipe of a training run; give "
                "that run's directory, or a number"
            )
        raise UserError(
            f"--class {name}: there is no such class; there is {', '.join(self.classes)}"
        )

    def class_name(self, label: int) -> str:
        """The name of a class, or its number."""
        names = {index: name for name, index in self.classes.items()}
        return names.get(label, f"class {label}")


def find_model(where: str) -> TrainedModel:
    """The model of a model directory or of a training run, local or at a URL.

    Raises:
        UserError: neither, with what is there instead.
    """
    if not storage.is_local(where):
        return TrainedModel(_remote_model(where))
    path = Path(where.removeprefix("file://"))
    if (path / store.CONFIG).is_file():
        beside = path.parent / "recipe.yaml" if path.name == "model" else None
        return _with_classes(str(path), beside)
    if (path / "model" / store.CONFIG).is_file():
        return _with_classes(str(path / "model"), path / "recipe.yaml")
    if not path.is_dir():
        raise UserError(f"{where}: no such directory; give a run or a model directory")
    if (path / "recipe.yaml").is_file():
        raise UserError(f"{where}: its training has not written a model yet; finish it first")
    if is_pipeline(where):
        stages = sorted(each.parent.parent.name for each in path.glob(f"*/model/{store.CONFIG}"))
        raise UserError(
            f"{where}: is a pipeline's run; name one of its models: "
            f"{', '.join(f'{where}/{stage}' for stage in stages) or 'none is trained yet'}"
        )
    raise UserError(
        f"{where}: is neither a model directory ({store.CONFIG}) nor a run (recipe.yaml, "
        f"{PIPELINE})"
    )


def _remote_model(where: str) -> str:
    """The URL itself, or `model` under it, whichever holds a model."""
    below = f"{where.rstrip('/')}/model"
    try:
        store.describe(where)
    except UserError as error:
        try:
            store.describe(below)
        except UserError:
            raise error from None
        return below
    return where


def _with_classes(model: str, recipe: Path | None) -> TrainedModel:
    """The model with the classes of a recipe's data."""
    data = None if recipe is None or not recipe.is_file() else _read_yaml(recipe).get("data")
    label = data.get("label") if isinstance(data, Mapping) else None
    if label is None:
        return TrainedModel(model)
    try:
        labels = LabelConfig.model_validate(label)
    except ValidationError as error:
        raise UserError(f"{recipe}: data.label: {error.errors()[0]['msg']}") from error
    return TrainedModel(model, labels)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return tree if isinstance(tree, Mapping) else {}


def is_pipeline(where: str) -> bool:
    """Whether a directory is a pipeline's run."""
    return storage.is_local(where) and (storage.local_path(where) / PIPELINE).is_file()


def pipeline_systems(run: Path) -> Mapping[str, SystemConfig]:
    """The systems that the evaluate stages of a pipeline's run evaluate, by stage.

    Raises:
        UserError: no pipeline's run, or a system that is not one.
    """
    if not (run / PIPELINE).is_file():
        raise UserError(f"{run}: is no pipeline's run directory; it has no {PIPELINE}")
    tree = _read_yaml(run / PIPELINE)
    stages = tree.get("stages") or {}
    values = {**{name: str(run / name) for name in stages}, **(tree.get("values") or {})}
    systems = {}
    for name, stage in stages.items():
        system = (stage.get("evaluation") or {}).get("system")
        # a model of classes is sampled by its own run
        if system is None or "classes" in stage["evaluation"]:
            continue
        try:
            systems[name] = SYSTEM.validate_python(substituted(system, values))
        except ValidationError as error:
            found = error.errors()[0]
            key = ".".join(str(part) for part in ("evaluation", "system", *found["loc"]))
            raise UserError(f"{run / PIPELINE}: stages.{name}.{key}: {found['msg']}") from error
    return systems


def substituted(tree: object, values: Mapping[str, str]) -> object:
    """A tree with each `${NAME}` of `values` replaced; other references stay."""
    match tree:
        case str():
            return REFERENCE.sub(lambda found: values.get(found[1], found[0]), tree)
        case Mapping():
            return {key: substituted(each, values) for key, each in tree.items()}
        case list():
            return [substituted(each, values) for each in tree]
        case _:
            return tree


def pipeline_clip(run: Path, name: str | None = None) -> ClipSource | None:
    """The CLIP model that the evaluate stage of a system scores with; None where it has none."""
    stages = _read_yaml(run / PIPELINE).get("stages") or {}
    stage = stages.get(name or default_system(run)) or {}
    source = (stage.get("evaluation") or {}).get("clip")
    values = {each: str(run / each) for each in stages}
    values |= _read_yaml(run / PIPELINE).get("values") or {}
    return None if source is None else CLIP.validate_python(substituted(source, values))


def default_system(run: Path) -> str:
    """The cascade, or else the first system whose images are evaluated, or else the first one."""
    systems = list(pipeline_systems(run))
    stages = _read_yaml(run / PIPELINE).get("stages") or {}
    whole = [name for name in systems if stages[name]["evaluation"].get("kind") == "text_to_image"]
    return next(iter(["cascade"] * ("cascade" in systems) + whole + systems), "cascade")


def system_of(run: Path, name: str) -> SystemConfig:
    """The system of the evaluate stage `name`.

    Raises:
        UserError: no pipeline's run, or none of its stages evaluates such a system.
    """
    systems = pipeline_systems(run)
    if name not in systems:
        raise UserError(f"--system {name}: {run} has {', '.join(systems) or 'no systems'}")
    return systems[name]


def find_system(where: str, name: str | None = None) -> SystemConfig:
    """The system of a pipeline's run, or a single diffusion model or unCLIP decoder.

    Raises:
        UserError: nothing that generates images is there, or no system of that name.
    """
    if is_pipeline(where):
        run = Path(where)
        return system_of(run, name or default_system(run))
    if name is not None:
        raise UserError(f"--system {name}: {where} is no pipeline's run directory")
    directory = find_model(where).directory
    if store.describe(directory).embeddings is not None:
        return decoder_system(directory)
    return denoiser_system(directory)


def decoder_system(directory: str) -> UnclipSystem:
    """A decoder of image embeddings with the CLIP that its directory records, without a prior.

    Raises:
        UserError: no model directory, or a model that is no such decoder.
    """
    info = store.describe(directory)
    record, conditions = info.embeddings, getattr(info.config, "conditioning", frozenset[str]())
    if record is None or "clip_image" not in conditions:
        raise UserError(
            f"{directory}: holds a {info.config.kind} that is not conditioned on CLIP embeddings "
            "of images; give the run of an unclip system, or of its decoder"
        )
    clip: ClipSource = record.model
    if record.weights is not None:
        clip = OpenClip(kind="open_clip", checkpoint=record.model)
    return UnclipSystem(clip=clip, decoder=directory)


def denoiser_system(directory: str) -> DenoiserSystem:
    """A single diffusion model: of latents where its directory records a first stage.

    Of a control it is the base that the directory records, under this control.

    Raises:
        UserError: no model directory, or a control's base is not where it was.
    """
    info = store.describe(directory)
    if isinstance(info.config, ControlConfig):
        return controlled_system(directory, info)
    if info.first_stage is not None:
        return LatentSystem(model=directory)
    return DiffusionSystem(model=directory)


def controlled_system(directory: str, info: store.ModelInfo) -> DenoiserSystem:
    """The base of a control, under this control."""
    if info.base is None:
        raise UserError(
            f"{directory}: is a control whose {store.CONFIG} names no base; give a system with "
            "model and controls"
        )
    try:
        base = denoiser_system(info.base.model)
    except UserError as error:
        raise UserError(f"{directory}/{store.CONFIG}: base: {error}") from error
    return base.model_copy(update={"controls": (ControlSettings(model=directory),)})
