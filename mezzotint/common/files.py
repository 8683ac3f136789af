"""Files that appear whole or not at all, and files that grow by whole lines."""

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file: a reader sees the old content or the new, also after a power failure.

    Raises:
        OSError: It cannot be written; the old file is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Replace a JSON file; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_json(path: Path, value: object) -> None:
    """Append a value as one line of JSON and sync it to the disk."""
    with path.open("ab") as file:
        file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def finite(values: Mapping[str, object]) -> dict[str, float]:
    """The values that are finite numbers: JSON has no others."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def read_lines(path: Path, offset: int = 0) -> list[bytes]:
    """The complete lines after the first `offset` bytes, with their line ends.

    A last line that was cut off by a crash is left out; a file that does not exist has no lines.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
