"""Conversion of weights and settings to and from other code: names, shapes and order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from mezzotint.common.errors import UserError

S = TypeVar("S", bound=BaseModel)


def settings_of_class(kinds: Mapping[str, type[S]], content: Mapping[str, Any], source: str) -> S:
    """The settings in a config.json of diffusers, by the class that it names.

    Raises:
        UserError: another class, or a key whose value ours has no network for.
    """
    name = content.get("_class_name")
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise UserError(f"{source}: _class_name: {name} is not one of {', '.join(kinds)}")
    own = {key: value for key, value in content.items() if not key.startswith("_")}
    return validated(kind, own, source)


def validated(kind: type[S], content: Mapping[str, Any], source: str) -> S:
    """The settings; refuses values that no network here has by their key."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise UserError(
            f"{source}: {key}: {content.get(key)!r} has no network here ({first['msg']})"
        ) from error


@dataclass(frozen=True)
class WeightMapping:
    """How one weight of ours is stored in one or several of theirs."""

    read: Callable[[Sequence[Tensor]], Tensor]
    """Theirs to ours."""
    write: Callable[[Tensor], Sequence[Tensor]]
    """Ours to theirs, the inverse."""


def _contiguous(parts: Sequence[Tensor]) -> list[Tensor]:
    return [part.contiguous() for part in parts]


SAME = WeightMapping(lambda parts: parts[0], lambda own: [own])


def concatenated(count: int) -> WeightMapping:
    """Ours is `count` of theirs, concatenated along the first dimension."""
    return WeightMapping(
        lambda parts: torch.cat(list(parts)), lambda own: _contiguous(own.chunk(count))
    )


def as_convolution(dimensions: int) -> WeightMapping:
    """A linear layer that is a pointwise convolution over `dimensions` there."""
    ones = (1,) * dimensions

    def write(own: Tensor) -> list[Tensor]:
        return [own.reshape(*own.shape, *ones)]

    return WeightMapping(lambda parts: parts[0].flatten(1), write)


def permuted_rows(order: Tensor, then: WeightMapping = SAME) -> WeightMapping:
    """Row i of ours is row `order[i]` of theirs, after `then`."""
    back = order.argsort()
    return WeightMapping(
        lambda parts: then.read(parts)[order], lambda own: _contiguous(then.write(own[back]))
    )


@dataclass(frozen=True)
class Weight:
    """The names of one weight of ours and of those of theirs that hold it."""

    ours: str
    theirs: tuple[str, ...]
    form: WeightMapping = SAME


def layer(ours: str, theirs: str, form: WeightMapping = SAME) -> list[Weight]:
    """The weight and the bias of a layer; `form` is the weight's."""
    weight = Weight(f"{ours}.weight", (f"{theirs}.weight",), form)
    return [weight, Weight(f"{ours}.bias", (f"{theirs}.bias",))]


def nested(layout: Sequence[Weight], ours: str, theirs: str) -> list[Weight]:
    """The weights of a part, whose names have these prefixes in the whole."""
    return [
        Weight(f"{ours}{each.ours}", tuple(f"{theirs}{name}" for name in each.theirs), each.form)
        for each in layout
    ]


def import_state(
    layout: Sequence[Weight], network: nn.Module, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict of `network`, which may be on the meta device, from one with their names.

    Raises:
        UserError: weights that are missing, unexpected, or of another shape, each by its name.
    """
    expected = _shapes(layout, network)
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    if missing or unexpected:
        raise UserError(
            f"weights do not fit the model: {_some('missing', missing)}; "
            f"{_some('unexpected', unexpected)}"
        )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise UserError(
                f"weight {name} has shape {tuple(weights[name].shape)}, the model needs "
                f"{tuple(shape)}"
            )
    return {
        each.ours: each.form.read([weights[name] for name in each.theirs]).contiguous()
        for each in layout
    }


def export_state(layout: Sequence[Weight], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours under their names."""
    return {
        name: part
        for each in layout
        for name, part in zip(each.theirs, each.form.write(weights[each.ours]), strict=True)
    }


def _shapes(layout: Sequence[Weight], network: nn.Module) -> dict[str, torch.Size]:
    """The shapes of all their weights."""
    own = {name: value.to("meta") for name, value in network.state_dict().items()}
    left = set(own) - {each.ours for each in layout}
    if left:
        raise UserError(f"this model has weights that the other code lacks: {sorted(left)[:3]}")
    return {name: part.shape for name, part in export_state(layout, own).items()}


def _some(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(names[:3]) or 'none'}{more}"
