"""Parameter groups by name: a checkpoint keeps them by position, and positions can change."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mezzotint.common.errors import UserError

SETTINGS = ("weight_decay", "betas", "eps", "moments")
Description = list[dict[str, Any]]
"""Of each group: `name`, its settings, and the names of its `weights`."""


def describe(optimizer: torch.optim.Optimizer, module: nn.Module) -> Description:
    """The groups of an optimizer over a module's own weights, in order."""
    names = {id(weight): name for name, weight in module.named_parameters()}
    return [
        {
            "name": group.get("name", f"group {number}"),
            **{key: group[key] for key in SETTINGS if key in group},
            "weights": [names[id(weight)] for weight in group["params"]],
        }
        for number, group in enumerate(optimizer.param_groups)
    ]


def arrange(optimizer: torch.optim.Optimizer, order: Sequence[str]) -> None:
    """Put the groups of an optimizer in the order of their names; others come last."""
    places = {name: place for place, name in enumerate(order)}
    optimizer.param_groups.sort(key=lambda group: places.get(group.get("name", ""), len(places)))


def write(path: Path, groups: Description) -> None:
    """Record the groups in a checkpoint."""
    path.write_text(json.dumps(groups, indent=1), encoding="utf-8")


def saved_order(checkpoint: Path | None, part: str) -> list[str]:
    """The order of a part's groups in a checkpoint; empty where it does not say."""
    path = None if checkpoint is None else checkpoint / file_name(part)
    if path is None or not path.is_file():
        return []
    return [str(group["name"]) for group in json.loads(path.read_text(encoding="utf-8"))]


def check(path: Path, groups: Description) -> None:
    """Refuse a checkpoint whose groups are others.

    Raises:
        UserError: with the first group that differs.
    """
    if not path.is_file():  # of an earlier version
        return
    saved: Description = json.loads(path.read_text(encoding="utf-8"))
    own: Description = json.loads(json.dumps(groups))
    for before, now in zip(saved, own, strict=False):
        if before != now:
            raise UserError(f"{path}: {difference(before, now)}; start a run of another name")
    if len(saved) != len(own):
        raise UserError(
            f"{path}: has {len(saved)} groups of weights and this run has {len(own)}; start a run "
            "of another name"
        )


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first key at which two groups differ, in a sentence."""
    if before["name"] != now["name"]:
        return f"the group {before['name']} stands where this run has {now['name']}"
    key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    if key == "weights":
        other = set(before[key]) ^ set(now[key])
        which = min(other) if other else "their order"
        return f"the group {before['name']} holds other weights ({which})"
    return f"{key} of the group {before['name']} was {before.get(key)} and is now {now.get(key)}"


def file_name(part: str, rank: int = 0) -> str:
    """The file of a part's groups in a checkpoint, the same of every process."""
    return f"groups-{part}-rank_{rank}_.json"
