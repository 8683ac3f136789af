"""The run directory: what one training run leaves on disk."""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mezzotint.common.errors import UserError
from mezzotint.common.files import write_json, write_text

if TYPE_CHECKING:
    from trainer.recipe import Recipe

PACKAGES = ("torch", "deepspeed", "webdataset", "mlflow", "open-clip-torch", "sentencepiece")


class Progress(Protocol):
    """Called by the loop after each report: `step` of `steps` updates are done."""

    def __call__(self, step: int, steps: int, metrics: Mapping[str, float]) -> None: ...


@dataclass(frozen=True)
class RunDirectory:
    """`runs/NAME/`: recipe, environment, metrics, logs, checkpoints, previews and the model."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def previews(self) -> Path:
        return self.path / "previews"

    @property
    def averages(self) -> Path:
        """Snapshots for post-hoc EMA, with ema.kind power."""
        return self.path / "averages"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def summary(self) -> Path:
        """Written last, by a finished run."""
        return self.path / "summary.json"

    def finished(self) -> bool:
        return self.summary.is_file()

    def located(self, recipe: "Recipe") -> "Recipe":
        """A recipe of this run with absolute paths, also in another working directory."""
        from trainer.locations import absolute  # imports torch
        from trainer.recipe import load

        return absolute(recipe, load(self.recipe) if self.recipe.is_file() else None)

    def claim(self, recipe: "Recipe") -> None:
        """Write recipe and environment, or check that the directory belongs to this recipe.

        A directory without any metric may be claimed by another recipe: its run was refused for bad
        input, which is fixed by changing the recipe.

        Raises:
            UserError: the directory holds a run of another recipe; a differing key is named.
        """
        from trainer.locations import absolute
        from trainer.recipe import dump, load  # imports torch

        recipe = self.located(recipe)
        for path in (self.path, self.path / "logs", self.previews):
            path.mkdir(parents=True, exist_ok=True)
        begun = self.metrics.is_file() or self.checkpoints.is_dir() or self.finished()
        if self.recipe.is_file() and begun:
            difference = first_difference(
                absolute(load(self.recipe)).model_dump(mode="json"), recipe.model_dump(mode="json")
            )
            if difference is not None:
                raise UserError(
                    f"{self.path}: holds a run of another recipe: {difference}; undo the change, "
                    "name another run directory, or remove this one"
                )
            return
        write_json(self.path / "environment.json", environment())
        write_text(self.recipe, dump(recipe))


def first_difference(before: object, now: object, path: str = "") -> str | None:
    """The first key at which two nested mappings differ, with both values; None if equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            where = f"{path}.{key}" if path else str(key)
            found = first_difference(before.get(key), now.get(key), where)
            if found is not None:
                return found
        return None
    return None if before == now else f"{path} was {before!r} and is now {now!r}"


def environment() -> dict[str, Any]:
    """Versions and machine of the run; no user data and no secrets."""
    return {
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
    }
