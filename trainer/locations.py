"""Where a recipe's files lie, whatever the working directory is."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mezzotint.common.digests import is_digest
from mezzotint.common.storage import is_local
from models.text_source import LOCATIONS
from trainer.recipe import Recipe

KEYS = (
    "data.url",
    "data.join",
    "data.text.tokenizer",
    "data.encoder",
    *(
        f"task.{holder}.{name}"
        for holder in (
            *("text_encoder", "condition.encoder", "condition.captions.encoder"),
            *("condition.conditions.*.encoder", "condition.conditions.*.captions.encoder"),
        )
        for name in LOCATIONS
    ),
    "task.base",
    "task.start",
    "task.perceptual.vgg",
    "task.perceptual.linear",
    "task.perceptual.model",
    "publish",
)
"""Keys of a recipe that hold a path or URL; `*` is every position of a list."""


def absolute(recipe: Recipe, saved: Recipe | None = None) -> Recipe:
    """The recipe with absolute paths, so that its run can be used from another directory.

    `saved` is the recipe of the run that is resumed. A path that is not there, seen from this
    working directory, is the run's own if that ends alike.
    """
    own = {} if saved is None else saved.model_dump(mode="json")

    def located(key: str, value: str) -> str:
        path = os.path.abspath(value.removeprefix("file://"))
        known = value_at(own, key)
        if isinstance(known, str) and not os.path.exists(path) and os.path.exists(known):
            relative = not os.path.isabs(value) and not value.startswith("file://")
            if relative and Path(known).parts[-len(Path(value).parts) :] == Path(value).parts:
                return known
        return path

    tree = recipe.model_dump(mode="json")
    for key in KEYS:
        for each in _positions(tree, key):
            change(tree, each, located)
    return Recipe.model_validate(tree)


def change(tree: dict[str, Any], key: str, located: Callable[[str, str], str]) -> None:
    """Replace the local path at a dotted key, if there is one."""
    *parents, last = key.split(".")
    node = value_at(tree, ".".join(parents)) if parents else tree
    value = node.get(last) if isinstance(node, dict) else None
    if isinstance(value, str) and is_local(value) and not is_digest(value):
        node[last] = located(key, value)
    if isinstance(value, list):
        node[last] = [located(key, each) if is_local(each) else each for each in value]


def value_at(tree: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 - whatever is there
    """The value at a dotted key, with numbers in lists; None if there is none."""
    node: Any = tree
    for part in key.split("."):
        if isinstance(node, list):
            node = dict(enumerate(node)).get(int(part)) if part.isdecimal() else None
        else:
            node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _positions(tree: Mapping[str, Any], key: str) -> list[str]:
    """The dotted key for every position of the list at its `*`."""
    before, star, after = key.partition(".*")
    if not star:
        return [key]
    found = value_at(tree, before)
    return [f"{before}.{index}{after}" for index in range(len(found))] if found else []
