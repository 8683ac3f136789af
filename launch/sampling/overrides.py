"""The settings of a system that `sample` can change, by the names of its options."""

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import yaml
from pydantic import ValidationError

from mezzotint.common.errors import UserError
from mezzotint.inference.config import (
    CascadeSystem,
    DalleSystem,
    DiffusionSystem,
    HierarchySystem,
    SystemConfig,
)
from trainer.recipe import explain

Value = str | float | int
Settings = Mapping[str, Value]

OPTIONS = ("guidance", "solver", "steps", "negative", "classifier-scale")
"""Settings with an option of their own; the others come by --set."""
_DIFFUSION = {
    "guidance": "sampling.guidance",
    "steps": "sampling.steps",
    "solver": "sampling.solver.kind",
    "times": "sampling.times.kind",
    "last": "sampling.times.last",
    "eta": "sampling.solver.eta",
    "rescale": "sampling.rescale",
    "thresholding": "sampling.thresholding.kind",
    "negative": "negative",
    "classifier-scale": "sampling.classifier_scale",
}
_CASCADE = {
    "guidance": "base_sampling.guidance",
    "steps": "base_sampling.steps",
    "solver": "base_sampling.solver.kind",
    "eta": "base_sampling.eta",
    "level": "upsampler_sampling.level",
}
_TOKENS = {
    "guidance": "sampling.guidance",
    "temperature": "sampling.temperature",
    "top-k": "sampling.top_k",
    "top-p": "sampling.top_p",
}


def names(config: SystemConfig) -> Mapping[str, str]:
    """Where each setting of a system lies in its configuration."""
    match config:
        case DiffusionSystem():
            return _DIFFUSION
        case CascadeSystem():
            return _CASCADE
        case DalleSystem() | HierarchySystem():
            return _TOKENS
        case _:
            assert_never(config)


def changed(config: SystemConfig, settings: Settings, option: str | None = None) -> SystemConfig:
    """The system with other settings; `option` is how an error calls what they came by.

    Raises:
        UserError: the system has no such setting, or it cannot have the value.
    """
    known = names(config)
    tree = config.model_dump(mode="json")
    kinds_first = sorted(settings.items(), key=lambda item: item[0] not in ("solver", "times"))
    for name, value in kinds_first:
        if name not in known:
            raise UserError(
                f"{_called(name, option)}: a system of kind {config.kind} has no such setting; it "
                f"has {', '.join(known)}"
            )
        *parents, last = known[name].split(".")
        node = tree
        for place, parent in enumerate(parents):
            # another kind has other options, so nothing of the old one is kept
            fresh = last == "kind" and place == len(parents) - 1
            if fresh or node[parent] is None:
                node[parent] = {}
            node = node[parent]
        node[last] = value
    try:
        return type(config).model_validate(tree)
    except ValidationError as error:
        raise UserError(_explained(error, tree, settings, known, option)) from error


def _explained(
    error: ValidationError,
    tree: Mapping[str, Any],
    settings: Settings,
    known: Mapping[str, str],
    option: str | None,
) -> str:
    """The first fault, by the setting that brought it where one did."""
    where, _, message = explain(error, "", tree).splitlines()[0].removeprefix(": ").partition(": ")
    for name, value in settings.items():
        if known[name] == where:
            return f"{_called(name, option)} {value}: {message}"
    given = ", ".join(f"{_called(name, option)} {value}" for name, value in settings.items())
    return f"{given}: {where}: {message}"


def _called(name: str, option: str | None) -> str:
    """A setting as the command line has it."""
    if option is not None:
        return f"{option} {name}"
    return f"--{name}" if name in OPTIONS else f"--set {name}"


def chosen(named: Mapping[str, Value | None], others: Sequence[str]) -> dict[str, Value]:
    """The settings that options give, and those in words like `times=karras`.

    Raises:
        UserError: a word that is none, or a setting given twice.
    """
    settings = {name: value for name, value in named.items() if value is not None}
    for word in others:
        name, separator, value = word.partition("=")
        name = name.replace("_", "-")
        if not separator or not name or not value:
            raise UserError(f"--set {word}: looks like times=karras")
        if name in settings:
            raise UserError(f"--set {word}: {name} is set already")
        settings[name] = _value(value)
    return settings


def sweep_of(words: Sequence[str]) -> dict[str, tuple[Value, ...]]:
    """One or two settings with their values, from words like `guidance=1,2,4 steps=10,25`.

    Raises:
        UserError: a word that is none, a setting twice, or more than two settings.
    """
    axes: dict[str, tuple[Value, ...]] = {}
    for word in " ".join(words).split():
        name, separator, listed = word.partition("=")
        values = tuple(_value(each) for each in listed.split(",") if each)
        if not separator or not name or not values:
            raise UserError(f"--sweep {word}: looks like guidance=1,2,4")
        name = name.replace("_", "-")
        if name in axes:
            raise UserError(f"--sweep {word}: {name} is swept already; list all its values once")
        axes[name] = values
    if len(axes) > 2:
        raise UserError(
            f"--sweep {' '.join(words)}: a grid has rows and columns, so two settings at most"
        )
    return axes


def _value(text: str) -> Value:
    read = yaml.safe_load(text)
    return read if isinstance(read, str | int | float) and not isinstance(read, bool) else text
