"""Settings of a system that `sample` can override, by the names of its options."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import yaml
from pydantic import ValidationError

from mezzotint.common.errors import UserError
from mezzotint.inference.config import CascadeSystem, SystemConfig, UnclipSystem
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
_STAGES = "upsampler_sampling"
_UPSAMPLERS = {
    "level": "upsampler_sampling.level",
    "upsampler-guidance": "upsampler_sampling.guidance",
    "upsampler-steps": "upsampler_sampling.steps",
    "upsampler-solver": "upsampler_sampling.solver.kind",
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
        **_UPSAMPLERS,
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
        "embedding-level": "embedding_level",
        **_UPSAMPLERS,
    },
    "dalle": _TOKENS,
    "hierarchy": _TOKENS,
}
"""By kind of system, the path of each setting in its configuration; in a list, of each element."""


def with_overrides(config: S, settings: Overrides, option: str | None = None) -> S:
    """The system with settings overridden; `option` is the one that errors name.

    A setting of super-resolution models is that of all of them, or with a number of one, as in
    `level.0`; a number has the last word.

    Raises:
        UserError: the system has no such setting or super-resolution model, or it cannot have the
            value.
    """
    tree = config.model_dump(mode="json")
    paths = {name: _path_of(config, name, option) for name in settings}
    if isinstance(config, CascadeSystem | UnclipSystem):
        tree[_STAGES] = [each.model_dump(mode="json") for each in config.stage_sampling]
    for name in sorted(settings, key=lambda name: ("." in name, name not in ("solver", "times"))):
        _set(tree, paths[name].split("."), settings[name])
    try:
        return cast("S", type(config).model_validate(tree))
    except ValidationError as error:
        raise UserError(_explain(error, tree, settings, paths, option)) from error


def _path_of(config: SystemConfig, name: str, option: str | None) -> str:
    """The path of a setting, with the index of its super-resolution model where it names one."""
    known, shown = SETTINGS[config.kind], _option_name(name, option)
    base, numbered, number = name.partition(".")
    if base not in known or (numbered and base not in _UPSAMPLERS):
        raise UserError(
            f"{shown}: a system of kind {config.kind} has no such setting; it has "
            f"{', '.join(known)}"
        )
    if base not in _UPSAMPLERS:
        return known[base]
    assert isinstance(config, CascadeSystem | UnclipSystem), "which have these settings"
    count = len(config.stage_sampling)
    if count == 0:
        raise UserError(f"{shown}: this system has no super-resolution models; leave it out")
    if not numbered:
        return known[base]
    if not number.isdecimal() or int(number) >= count:
        raise UserError(
            f"{shown}: has no such super-resolution model; the numbers are 0 to {count - 1}, the "
            "first one enlarges first"
        )
    return known[base].replace(_STAGES, f"{_STAGES}.{int(number)}")


def _set(node: Any, path: Sequence[str], value: Value) -> None:  # noqa: ANN401
    """Set a value in a tree; of a list in the element that the path names, or in all."""
    first, *rest = path
    if isinstance(node, list):
        chosen, inside = ([node[int(first)]], rest) if first.isdecimal() else (node, path)
        for each in chosen:
            _set(each, inside, value)
    elif not rest:
        node[first] = value
    else:
        if rest == ["kind"] or node[first] is None:  # another kind has other options
            node[first] = {}
        _set(node[first], rest, value)


def _explain(
    error: ValidationError,
    tree: Mapping[str, Any],
    settings: Overrides,
    paths: Mapping[str, str],
    option: str | None,
) -> str:
    """The first error, under the option of its setting where there is one."""
    where, _, message = explain(error, "", tree).splitlines()[0].removeprefix(": ").partition(": ")
    of_all = ".".join(part for part in where.split(".") if not part.isdecimal())
    for name, value in settings.items():
        if paths[name] in (where, of_all):
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
