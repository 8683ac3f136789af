"""Room on disk, asked for before anything is written."""

import os
import shutil
from pathlib import Path

from mezzotint.common.errors import UserError

_RESERVE = 16 << 20
"""Bytes left free, for the file system's own tables and everybody's logs."""


def check_space(directory: Path, needed: int, *, purpose: str) -> None:
    """Make sure ``needed`` bytes and one inode are free where ``directory`` is (or will be).

    Raises:
        UserError: They are not; a full disk otherwise shows as an unrelated error halfway.
    """
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed + _RESERVE:
        raise UserError(
            f"{directory}: no disk space for {purpose}: {needed + _RESERVE:,} bytes needed, "
            f"{free:,} free; make room or choose another directory"
        )
    inodes = os.statvfs(existing)
    if inodes.f_files > 0 and inodes.f_favail < 1:
        raise UserError(
            f"{directory}: no inodes left for {purpose}; delete files or choose another directory"
        )
