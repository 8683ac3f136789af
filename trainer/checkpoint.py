"""Resumable checkpoints, committed whole or not at all.

Every process writes its files into a hidden directory, syncs and hashes them; the digests are
gathered into MANIFEST.json, and one rename makes the checkpoint visible. Loading takes the newest
step whose manifest verifies, agreed by all processes; DeepSpeed unpickles its files, so nothing
that a manifest does not list and verify is ever loaded.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load_file, save_file

from mezzotint.common import files
from mezzotint.common.digests import sha256_file
from mezzotint.common.disk_space import check_space
from mezzotint.common.errors import UserError
from trainer import distributed
from trainer.averages.ema import Ema
from trainer.distributed import World
from trainer.engine import Engine

log = logging.getLogger(__name__)
MANIFEST, STATE = "MANIFEST.json", "state.json"


class FileEntry(BaseModel, frozen=True, extra="forbid"):
    """What a file must be."""

    bytes: int = Field(ge=0)
    sha256: str


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """MANIFEST.json: by how many processes a checkpoint was written, and all files in it."""

    world: int = Field(gt=0)
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, under `root`."""

    root: Path
    world: World
    keep: int

    def save(
        self,
        step: int,
        engines: Mapping[str, Engine],
        emas: Mapping[str, Ema],
        state: Mapping[str, Any],
    ) -> Path:
        """Write the checkpoint of `step` (updates done); every process calls it.

        Raises:
            UserError: the disk is full; earlier checkpoints are untouched.
        """
        final = self.root / f"step-{step:08d}"
        temporary = self.root / f".step-{step:08d}.tmp"
        if self.world.is_main:
            self.root.mkdir(parents=True, exist_ok=True)
            for unfinished in self.root.glob(".step-*.tmp"):
                shutil.rmtree(unfinished)
            check_space(self.root, 2 * _size_of_newest(self.root), purpose="the next checkpoint")
            temporary.mkdir()
        distributed.barrier()
        for name, engine in engines.items():
            engine.save(str(temporary))
            if name in emas and (engine.zero == 3 or self.world.is_main):
                save_file(
                    {key: value.contiguous() for key, value in emas[name].values.items()},
                    temporary / self._averages(name, engine),
                )
        if self.world.is_main:
            counts = {name: ema.updates for name, ema in emas.items()}
            text = json.dumps({"step": step, "ema_updates": counts, **state}, indent=1)
            (temporary / STATE).write_text(text, encoding="utf-8")
        distributed.barrier()
        own = {}
        for name in _files(temporary):
            if _writer(name) == self.world.rank:
                path = temporary / name
                files.sync(path)
                own[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        gathered = distributed.gather_strings(json.dumps(own))
        if self.world.is_main:
            self._commit(temporary, final, gathered)
        distributed.barrier()
        return final

    def _commit(self, temporary: Path, final: Path, gathered: list[str]) -> None:
        entries: dict[str, Any] = {}
        for text in gathered:
            entries.update(json.loads(text))
        manifest = Manifest(world=self.world.size, files=entries)
        files.write_text(temporary / MANIFEST, manifest.model_dump_json(indent=1))
        if final.exists():  # left by a run whose checkpoint did not verify
            shutil.rmtree(final)
        temporary.rename(final)
        files.write_text(self.root / "latest", final.name)
        files.sync(self.root)
        steps = _steps(self.root)
        first = steps.index(final)  # later ones did not verify: they must not push this one out
        for old in [*steps[:first], *steps[first + self.keep :]]:
            shutil.rmtree(old)

    def newest(self, before: Path | None = None) -> Path | None:
        """The newest checkpoint that verifies, the same on every process; None when there is none.

        `before` is one that cannot be used: then of those that are older.

        Raises:
            UserError: checkpoints are there, and none of them verifies.
        """
        answer = ""
        if self.world.is_main:
            candidates = _steps(self.root)
            for candidate in candidates:
                if before is not None and candidate >= before:
                    continue
                fault = verify(candidate)
                if fault is None:
                    answer = candidate.name
                    break
                log.warning("%s is not used: %s", candidate, fault)
            else:
                answer = "!" if candidates else ""
        answer = distributed.broadcast_string(answer)
        if answer == "!":
            raise UserError(
                f"{self.root}: no checkpoint can be used; restore one from a backup, or remove the "
                "directory to start from step 0"
            )
        return self.root / answer if answer else None

    def last(self) -> Path | None:
        """The last checkpoint, which may not verify."""
        return next(iter(_steps(self.root)), None)

    def restore(
        self, path: Path, engines: Mapping[str, Engine], emas: Mapping[str, Ema]
    ) -> dict[str, Any]:
        """Read a verified checkpoint into engines and averages; returns the saved state.

        Raises:
            UserError: it was written by another number of processes.
        """
        world = _read_manifest(path).world
        if world != self.world.size:
            raise UserError(
                f"{path}: was written by {world} processes and this run has {self.world.size}; "
                f"start it with {world}"
            )
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
        for name, engine in engines.items():
            engine.restore(str(path))
            if name in emas:
                shard = load_file(path / self._averages(name, engine))
                emas[name].restore(shard, state["ema_updates"][name])
        return state

    def _averages(self, part: str, engine: Engine) -> str:
        """The file of a process's averages: its own shard, or the whole that all of them have."""
        rank = self.world.rank if engine.zero == 3 else 0
        return f"ema-{part}-rank_{rank}_.safetensors"


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is as its manifest says."""
    try:
        entries = _read_manifest(path).files
    except (OSError, ValidationError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, expected in entries.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected.bytes:
            return f"{name} has {file.stat().st_size} bytes instead of {expected.bytes}"
        if sha256_file(file) != expected.sha256:
            return f"{name} has changed since it was written"
    extra = set(_files(path)) - set(entries) - {MANIFEST}
    return f"{min(extra)} is not listed in its manifest" if extra else None


def _read_manifest(path: Path) -> Manifest:
    return Manifest.model_validate_json((path / MANIFEST).read_bytes())


def _steps(root: Path) -> list[Path]:
    return sorted(root.glob("step-*"), reverse=True) if root.is_dir() else []


def _files(directory: Path) -> list[str]:
    return sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )


def _writer(name: str) -> int:
    """The rank that wrote a file: DeepSpeed and this module name it; the rest is rank 0's."""
    found = re.search(r"(?:pp_rank|-rank)_(\d+)_", name)
    return int(found.group(1)) if found else 0


def _size_of_newest(root: Path) -> int:
    steps = _steps(root)
    return sum(path.stat().st_size for path in steps[0].rglob("*")) if steps else 0
