"""Free disk space, checked before anything is written."""

import math
import os
import shutil
from pathlib import Path

from mezzotint.common.errors import UserError

_RESERVED_BYTES = 16 << 20
_RESERVED_INODES = 1000
"""Left free for the file system's own tables and for logs."""


def check_space(directory: Path, needed: int, *, purpose: str) -> None:
    """Check that `needed` bytes are free where `directory` is or will be.

    Raises:
        UserError: Too few bytes or inodes are free; the message names `purpose`.
    """
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    needed += _RESERVED_BYTES
    if free < needed:
        raise UserError(
            f"{directory}: no disk space for {purpose}: {math.ceil(needed / 1e6):,} MB are needed "
            f"and {math.floor(free / 1e6):,} MB are free; delete files or choose another directory"
        )
    inodes = os.statvfs(existing)
    if inodes.f_files > 0 and inodes.f_favail < _RESERVED_INODES:
        raise UserError(
            f"{directory}: no inodes left for {purpose}; delete files or choose another directory"
        )
