"""Settings of a system that `sample` can override, by the names of its options."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from mezzotint.common.errors import UserError
from mezzotint.inference.config import SystemConfig
from trainer.recipe import explain

Value = str | float | int
S = TypeVar("S", bound=SystemConfig)
Overrides = Mapping[str, Value]

OPTIONS = ("guidance", "solver", "steps", "negative", "classifier-scale", "first-stage")
"""Settings with an option of their own; the others come by --set."""
_TOKENS = {
    "guidance": "sampling.guidance",
    "temperature": "sampling.temperature",
    "top-k": "sampling.top_k",
    "top-p": "sampling.top_p",
}
_DENOISER = {
    "guidance": "sampling.guidance",
    "steps": "sampling.steps",
    "solver": "sampling.solver.kind",
    "times": "sampling.times.kind",
    "last": "sampling.times.last",
    "eta": "sampling.solver.eta",
    "rescale": "sampling.rescale",
    "thresholding": "sampling.thresholding.kind",
    "negative": "negative",
}
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "diffusion": {**_DENOISER, "classifier-scale": "sampling.classifier_scale"},
    "latent": {**_DENOISER, "first-stage": "first_stage"},
    "cascade": {
        "guidance": "base_sampling.guidance",
        "steps": "base_sampling.steps",
        "solver": "base_sampling.solver.kind",
        "eta": "base_sampling.eta",
        "times": "base_sampling.times.kind",
        "thresholding": "base_sampling.thresholding.kind",
        "level": "upsampler_sampling.level",
        "upsampler-guidance": "upsampler_sampling.guidance",
        "upsampler-steps": "upsampler_sampling.steps",
        "upsampler-solver": "upsampler_sampling.solver.kind",
    },
    "unclip": {
        "guidance": "sampling.guidance",
        "steps": "sampling.steps",
        "solver": "sampling.solver.kind",
        "eta": "sampling.eta",
        "prior": "prior",
        "prior-guidance": "prior_sampling.guidance",
        "prior-steps": "prior_sampling.steps",
        "prior-solver": "prior_sampling.solver.kind",
        "best-of": "prior_sampling.best_of",
    },
    "dalle": _TOKENS,
    "hierarchy": _TOKENS,
}
"""By kind of system, the path of each setting in its configuration; in a list, of each element."""


def with_overrides(config: S, settings: Overrides, option: str | None = None) -> S:
    """The system with settings overridden; `option` is the one that errors name.

    Raises:
        UserError: the system has no such setting, or it cannot have the value.
    """
    known = SETTINGS[config.kind]
    tree = config.model_dump(mode="json")
    kinds_first = sorted(settings.items(), key=lambda item: item[0] not in ("solver", "times"))
    for name, value in kinds_first:
        if name not in known:
            raise UserError(
                f"{_option_name(name, option)}: a system of kind {config.kind} has no such "
                f"setting; it has {', '.join(known)}"
            )
        *parents, last = known[name].split(".")
        nodes = [tree]
        for index, parent in enumerate(parents):
            # another kind has other options
            fresh = last == "kind" and index == len(parents) - 1
            for node in nodes:
                if fresh or node[parent] is None:
                    node[parent] = {}
            found = [node[parent] for node in nodes]
            nodes = [one for each in found for one in (each if isinstance(each, list) else [each])]
        for node in nodes:
            node[last] = value
    try:
        return cast("S", type(config).model_validate(tree))
    except ValidationError as error:
        raise UserError(_explain(error, tree, settings, known, option)) from error


def _explain(
    error: ValidationError,
    tree: Mapping[str, Any],
    settings: Overrides,
    known: Mapping[str, str],
    option: str | None,
) -> str:
    """The first error, under the option of its setting where there is one."""
    where, _, message = explain(error, "", tree).splitlines()[0].removeprefix(": ").partition(": ")
    for name, value in settings.items():
        if known[name] == where:
            return f"{_option_name(name, option)} {value}: {message}"
    given = ", ".join(f"{_option_name(name, option)} {value}" for name, value in settings.items())
    return f"{given}: {where}: {message}"


def _option_name(name: str, option: str | None) -> str:
    """A setting as an option of the command line."""
    if option is not None:
        return f"{option} {name}"
    return f"--{name}" if name in OPTIONS else f"--set {name}"


def parse_overrides(named: Mapping[str, Value | None], others: Sequence[str]) -> dict[str, Value]:
    """Settings of options of their own, and those of `--set`, like `times=karras`.

    Raises:
        UserError: not a setting with a value, or one given twice.
    """
    settings = {name: value for name, value in named.items() if value is not None}
    for word in others:
        name, separator, value = word.partition("=")
        name = name.replace("_", "-")
        if not separator or not name or not value:
            raise UserError(f"--set {word}: looks like times=karras")
        if name in settings:
            raise UserError(f"--set {word}: {name} is set already")
        settings[name] = _parse_value(value)
    return settings


def parse_sweep(words: Sequence[str]) -> dict[str, tuple[Value, ...]]:
    """One or two settings with their values, as in `guidance=1,2,4 steps=10,25`.

    Raises:
        UserError: not a setting with values, one given twice, or more than two.
    """
    axes: dict[str, tuple[Value, ...]] = {}
    for word in " ".join(words).split():
        name, separator, listed = word.partition("=")
        values = tuple(_parse_value(each) for each in listed.split(",") if each)
        if not separator or not name or not values:
            raise UserError(f"--sweep {word}: expected KEY=VALUE,VALUE,... as in guidance=1,2,4")
        name = name.replace("_", "-")
        if name in axes:
            raise UserError(f"--sweep {word}: {name} is swept already; list all its values once")
        axes[name] = values
    if len(axes) > 2:
        raise UserError(
            f"--sweep {' '.join(words)}: a grid has rows and columns, so two settings at most"
        )
    return axes


def _parse_value(text: str) -> Value:
    read = yaml.safe_load(text)
    return read if isinstance(read, str | int | float) and not isinstance(read, bool) else text
