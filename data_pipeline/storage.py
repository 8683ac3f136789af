"""Files behind local paths and fsspec URLs (``s3://``, ``gs://``, ``https://``, ``memory://``)."""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

import fsspec.core
from fsspec import AbstractFileSystem

from data_pipeline.errors import DataError


def is_local(url: str) -> bool:
    """Whether ``url`` names this machine's file system."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path behind a local ``url``."""
    return Path(url.removeprefix("file://"))


def join(url: str, name: str) -> str:
    """The URL of ``name`` inside the directory ``url``."""
    return posixpath.join(url.rstrip("/") or "/", name)


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of ``url`` and the path of ``url`` inside it.

    Ask for it where it is used and never keep it: fsspec makes one per process, while an
    asynchronous file system (s3fs) carried through a fork hangs on its parent's event loop.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise DataError(f"{url}: no file system for this URL ({error})") from error
    except ImportError as error:
        raise DataError(f"{url}: {error}; install the package that serves it") from error
    return system, str(path)


def exists(url: str) -> bool:
    """Whether a file or directory is at ``url``."""
    system, path = filesystem(url)
    return bool(system.exists(path))


def is_file(url: str) -> bool:
    """Whether a file is at ``url``."""
    system, path = filesystem(url)
    return bool(system.isfile(path))


def read_bytes(url: str) -> bytes:
    """The whole file at ``url``.

    Raises:
        DataError: The file is not there or cannot be read.
    """
    system, path = filesystem(url)
    try:
        return bytes(system.cat_file(path))
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such file") from error
    except OSError as error:
        raise DataError(f"{url}: cannot be read ({error})") from error


def write_bytes(url: str, content: bytes) -> None:
    """Put ``content`` at ``url``, whole or not at all.

    Locally through a temporary file and a rename; object stores replace whole objects anyway.
    """
    if is_local(url):
        path = local_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise DataError(f"{url}: cannot be written ({error})") from error
        finally:
            temporary.unlink(missing_ok=True)
        return
    system, path_inside = filesystem(url)
    try:
        system.pipe_file(path_inside, content)
    except OSError as error:
        raise DataError(f"{url}: cannot be written ({error})") from error


def walk(url: str) -> dict[str, int]:
    """Bytes of every file below the directory ``url``, by the path relative to it, sorted.

    Raises:
        DataError: The directory is not there.
    """
    system, path = filesystem(url)
    try:
        found = system.find(path, detail=True)
    except OSError as error:
        raise DataError(f"{url}: cannot be listed ({error})") from error
    root = path.rstrip("/") + "/"
    return {
        str(name).removeprefix(root): int(entry["size"] or 0)
        for name, entry in sorted(found.items())
    }


def download(url: str, target: Path) -> None:
    """Copy the file at ``url`` to the local path ``target``.

    Raises:
        DataError: It cannot be read.
    """
    system, path = filesystem(url)
    try:
        system.get_file(path, str(target))
    except OSError as error:
        raise DataError(f"{url}: cannot be read ({error})") from error


def upload(source: Path, url: str) -> None:
    """Move the finished local file ``source`` to ``url``; ``source`` is gone afterwards."""
    try:
        if is_local(url):
            target = local_path(url)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
        else:
            system, path = filesystem(url)
            system.put_file(str(source), path)
            source.unlink()
    except OSError as error:
        raise DataError(f"{url}: cannot be written ({error})") from error


def remove(url: str) -> None:
    """Delete the file at ``url`` if it is there."""
    system, path = filesystem(url)
    if system.exists(path):
        system.rm_file(path)


def remove_directory(url: str) -> None:
    """Delete the empty directory ``url``; object stores have none."""
    if is_local(url):
        local_path(url).rmdir()


def sizes(url: str) -> dict[str, int]:
    """Bytes of every file directly inside the directory ``url``: one listing, no reads.

    Raises:
        DataError: The directory is not there.
    """
    system, path = filesystem(url)
    try:
        listing = system.ls(path, detail=True)
    except FileNotFoundError as error:
        raise DataError(f"{url}: no such directory") from error
    except OSError as error:
        raise DataError(f"{url}: cannot be listed ({error})") from error
    return {
        posixpath.basename(str(entry["name"])): int(entry["size"] or 0)
        for entry in listing
        if entry["type"] == "file"
    }


def sizes_of(url: str, names: Iterable[str]) -> dict[str, int]:
    """Bytes of those of the files ``names`` that are inside the directory ``url``.

    One listing, except over HTTP: a web server lists nothing reliable, so each is asked for.
    """
    if not url.startswith(("http://", "https://")):
        return sizes(url)
    found = {}
    for name in names:
        system, path = filesystem(join(url, name))
        try:
            found[name] = int(system.info(path)["size"] or 0)
        except FileNotFoundError:
            continue
    return found
