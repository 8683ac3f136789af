"""What `sample`, `invert` and `likelihood` are pointed at: a run or a model directory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from data_pipeline.config import LabelConfig
from evaluation.config import TextToImageConfig
from launch.pipeline.config import EvaluateStage, load_run_pipeline, resolve_stage
from launch.status.lookup import suggest
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.inference.config import SystemConfig
from models import store
from trainer.recipe import read_tree


@dataclass(frozen=True)
class Target:
    """A model directory, and the names of its classes if they are known."""

    model: str
    classes: Mapping[str, int] = field(default_factory=dict)
    labels: LabelConfig | None = None
    """How its data gave the classes."""

    @property
    def called(self) -> str:
        """What sheets call it: the run's name, or the directory's."""
        path = Path(self.model)
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
        near = suggest(name, self.classes)
        raise UserError(f"--class {name}: there is no such class{near}")

    def name(self, label: int) -> str:
        """The name of a class, or its number."""
        for name, place in self.classes.items():
            if place == label:
                return name
        return f"class {label}"


def is_pipeline(where: str) -> bool:
    """Whether a pipeline's run directory is meant."""
    return storage.is_local(where) and (Path(where) / "pipeline.yaml").is_file()


def target_of(where: str) -> Target:
    """The model of a model directory or of a training run, local or at a URL.

    Raises:
        UserError: neither, with what is there instead.
    """
    if not storage.is_local(where):
        return Target(_remote_model(where))
    path = storage.local_path(where)
    if (path / store.CONFIG).is_file():
        beside = path.parent / "recipe.yaml" if path.name == "model" else None
        return _with_classes(str(path), beside)
    if (path / "model" / store.CONFIG).is_file():
        return _with_classes(str(path / "model"), path / "recipe.yaml")
    if not path.is_dir():
        raise UserError(f"{where}: no such directory; give a run or a model directory")
    if (path / "recipe.yaml").is_file():
        raise UserError(f"{where}: its training has not written a model yet; finish it first")
    if (path / "pipeline.yaml").is_file():
        stages = sorted(each.parent.parent.name for each in path.glob(f"*/model/{store.CONFIG}"))
        raise UserError(
            f"{where}: is a pipeline's run; name one of its models: "
            f"{', '.join(f'{where}/{stage}' for stage in stages) or 'none is trained yet'}"
        )
    raise UserError(
        f"{where}: is neither a model directory ({store.CONFIG}) nor a run (recipe.yaml, "
        "pipeline.yaml)"
    )


def _remote_model(where: str) -> str:
    """The URL itself, or `model` under it, whichever holds a model."""
    below = f"{where.rstrip('/')}/model"
    try:
        store.describe(where)
    except UserError as fault:
        try:
            store.describe(below)
        except UserError:
            raise fault from None
        return below
    return where


def _with_classes(model: str, recipe: Path | None) -> Target:
    """The target with the classes of a recipe's data."""
    if recipe is None or not recipe.is_file():
        return Target(model)
    data = read_tree(recipe).get("data")
    said = data.get("label") if isinstance(data, Mapping) else None
    if said is None:
        return Target(model)
    try:
        labels = LabelConfig.model_validate(said)
    except ValidationError as error:
        raise UserError(f"{recipe}: data.label: {error.errors()[0]['msg']}") from error
    names = {str(value): place for place, value in enumerate(labels.values or ())}
    return Target(model, names, labels)


def systems_of(run: Path) -> Mapping[str, EvaluateStage]:
    """The evaluate stages of a pipeline's run that judge systems."""
    return {
        key: stage
        for key, stage in load_run_pipeline(run).stages.items()
        if isinstance(stage, EvaluateStage) and isinstance(stage.evaluation, TextToImageConfig)
    }


def default_system(run: Path) -> str:
    """The cascade, or else the first system there is."""
    systems = list(systems_of(run))
    return "cascade" if "cascade" in systems or not systems else systems[0]


def system_of(run: Path, name: str) -> SystemConfig:
    """The system that the evaluate stage `name` of a pipeline's run judges."""
    if not (run / "pipeline.yaml").is_file():
        raise UserError(f"{run}: is no pipeline's run directory; it has no pipeline.yaml")
    systems = systems_of(run)
    if name not in systems:
        raise UserError(f"--system {name}: {run} has {', '.join(systems) or 'no systems'}")
    resolved = resolve_stage(load_run_pipeline(run), name, run)
    assert isinstance(resolved, EvaluateStage)
    assert isinstance(resolved.evaluation, TextToImageConfig)
    return resolved.evaluation.system
