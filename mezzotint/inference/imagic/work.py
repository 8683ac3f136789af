"""The directory in which an edit keeps what it has trained, so that it can go on and sample again.

Every part, the embedding and each network, has one safetensors file: what is trained of it, and
while it is not finished the optimizer's state.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.common import files
from mezzotint.common.errors import UserError

ABOUT = "edit.json"


@dataclass(frozen=True)
class SavedPart:
    """A part of an edit after `step` steps."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


@dataclass(frozen=True)
class WorkDirectory:
    """Where the parts of one edit lie; without a path nothing is kept."""

    path: Path | None = None
    writes: bool = True
    """Whether this process writes, one of several."""

    @classmethod
    def open(
        cls, path: Path | None, about: Mapping[str, object], *, writes: bool = True
    ) -> "WorkDirectory":
        """The directory of the edit that `about` describes, new or from before.

        Raises:
            UserError: it belongs to another edit, or cannot be written.
        """
        if path is None:
            return cls()
        known = _about(path)
        for key, value in about.items():
            if known is not None and known.get(key) != value:
                raise UserError(
                    f"{path}: holds another edit ({key} is {known.get(key)!r}, not {value!r}); "
                    "choose another --work, or delete it"
                )
        if known is None and writes:
            try:
                path.mkdir(parents=True, exist_ok=True)
                files.write_json(path / ABOUT, about)
            except OSError as error:
                raise UserError(f"{path}: cannot be written ({error}); choose --work") from error
        return cls(path, writes)

    def load(self, name: str) -> SavedPart | None:
        """A part as it was last saved; None if it was not.

        Raises:
            UserError: its file is damaged.
        """
        if self.path is None or not (where := self._file(name)).is_file():
            return None
        try:
            with safe_open(where, framework="pt", device="cpu") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                step = int(file.metadata()["step"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: cannot be read ({error}); delete it") from error
        return SavedPart(step, _below("weights/", tensors), _below("optimizer/", tensors))

    def save(self, name: str, part: SavedPart) -> None:
        """Replace a part's file, which is whole at every time.

        Raises:
            UserError: it cannot be written.
        """
        if self.path is None or not self.writes:
            return
        where = self._file(name)
        fresh = where.with_name(f".{where.name}.tmp")
        tensors = {f"weights/{key}": value.detach() for key, value in part.weights.items()}
        tensors |= {f"optimizer/{key}": value for key, value in part.optimizer.items()}
        kept = {key: value.contiguous() for key, value in tensors.items()}
        try:
            save_file(kept, fresh, metadata={"step": str(part.step)})
            os.replace(fresh, where)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{where}: cannot be written ({error}); choose --work") from error

    def _file(self, name: str) -> Path:
        assert self.path is not None, "parts lie in a directory"
        return self.path / f"{name}.safetensors"


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _about(path: Path) -> Mapping[str, object] | None:
    """What the edit in a directory is; None where there is none.

    Raises:
        UserError: something else is there.
    """
    if not path.exists():
        return None
    if not path.is_dir() or (any(path.iterdir()) and not (path / ABOUT).is_file()):
        raise UserError(f"{path}: is no directory of an edit; choose another --work")
    if not (path / ABOUT).is_file():
        return None
    try:
        tree = json.loads((path / ABOUT).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path / ABOUT}: cannot be read ({error}); delete {path}") from error
    return tree if isinstance(tree, dict) else {}
