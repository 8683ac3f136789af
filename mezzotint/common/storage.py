"""Files at local paths and fsspec URLs (`s3://`, `gs://`, `https://`, `memory://`).

Endpoint, credentials and profile of an object store come from the environment (`AWS_*`). Every
storage failure is raised as a UserError, and every remote call has a time limit.
"""

import math
import os
import posixpath
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec.core
from fsspec import AbstractFileSystem

from mezzotint.common import files, s3_client
from mezzotint.common.errors import UserError
from mezzotint.common.local_files import FileStatus, Listing, list_files, local_status
from mezzotint.common.storage_errors import (
    BARE_CODES,
    NotFoundError,
    check_no_credentials,
    error_code,
    explain,
)
from mezzotint.common.timeouts import with_timeout

T = TypeVar("T")

REQUEST_TIMEOUT = 60.0
"""Seconds for one response, or for the next byte of a transfer. The clients' own timeouts do not
end a transfer that stalls."""
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "LastModified",
    "last_modified",
    "mtime",
    "modified",
    "created",
)
_LIST_TIMEOUT = 600.0
"""Seconds for a listing or a small file."""
_SLOWEST = 1e6
"""Bytes per second that a transfer of a whole file is given time for."""


def is_local(url: str) -> bool:
    """Whether `url` is in this machine's file system."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The path of a local `url`."""
    return Path(url.removeprefix("file://"))


def join(url: str, name: str) -> str:
    """The URL of `name` inside the directory `url`."""
    return posixpath.join(url.rstrip("/") or "/", name)


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of `url` and the path of `url` inside it.

    Not to be kept: fsspec caches one per process, and an asynchronous file system (s3fs) that is
    used after a fork hangs on its parent's event loop.

    Raises:
        UserError: No file system supports this URL, or it holds credentials.
    """
    try:
        check_no_credentials(url)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        system, path = fsspec.core.url_to_fs(url, **_options(url))
    except ValueError as error:
        raise UserError(f"{url}: no file system for this URL ({error})") from error
    except ImportError as error:
        raise UserError(f"{url}: {error}; install the package that supports it") from error
    return system, str(path)


def _options(url: str) -> dict[str, object]:
    if not url.startswith(s3_client.SCHEMES):
        return {}
    # no listings cache: other processes write to the store too
    return {"config_kwargs": s3_client.client_settings(), "use_listings_cache": False}


def single_request(url: str) -> dict[str, int]:
    """Options that keep s3fs from requesting the size first and then ranges."""
    return {"max_concurrency": 1} if url.startswith(s3_client.SCHEMES) else {}


def exists(url: str) -> bool:
    """Whether there is a file or directory at `url`."""
    return bool(_info(url))


def is_file(url: str) -> bool:
    """Whether there is a file at `url`."""
    return _info(url).get("type") == "file"


def read_bytes(url: str, *, expected: int = 0) -> bytes:
    """The content of the file at `url`.

    `expected` is its size in bytes if it may be large: the time limit grows with it.

    Raises:
        NotFoundError: There is no such file.
        UserError: It cannot be read.
    """
    if is_local(url):
        return _local(url, "read", lambda path: path.read_bytes())
    options = single_request(url)
    seconds = _LIST_TIMEOUT + expected / _SLOWEST
    return request(
        url, "read", lambda system, path: bytes(system.cat_file(path, **options)), seconds
    )


def write_bytes(url: str, content: bytes) -> None:
    """Write the file at `url`, whole or not at all (an object store replaces whole objects).

    Raises:
        UserError: It cannot be written.
    """
    if is_local(url):
        path = local_path(url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(path, content)
        except OSError as error:
            raise UserError(f"{url}: cannot be written ({error})") from error
        return
    seconds = _LIST_TIMEOUT + len(content) / _SLOWEST
    request(url, "written", lambda system, path: system.pipe_file(path, content), seconds)


def walk(url: str) -> Listing:
    """All files below the directory `url`, none if it does not exist; local links are followed.

    Raises:
        UserError: The directory cannot be listed.
    """
    if is_local(url):
        if not local_path(url).exists():
            return Listing({}, [], [], [])
        return _local(url, "listed", list_files)

    def find(system: AbstractFileSystem, path: str) -> tuple[str, dict[str, Any]]:
        return path.rstrip("/") + "/", system.find(path, detail=True)

    root, found = request(url, "listed", find, _LIST_TIMEOUT)
    files = {
        str(name).removeprefix(root): FileStatus(int(entry["size"] or 0), _stamp(entry))
        for name, entry in sorted(found.items())
        if not str(name).endswith("/")  # the marker of an empty directory
    }
    return Listing(files, [], [], [])


def status(url: str) -> FileStatus | None:
    """What is known of the file at `url` without reading it; None if there is none."""
    if is_local(url):
        try:
            return local_status(local_path(url).stat())
        except (OSError, ValueError):
            return None
    entry = _info(url)
    return FileStatus(int(entry.get("size") or 0), _stamp(entry)) if entry else None


def _stamp(entry: dict[str, Any]) -> str:
    """What a store says of the version of a file, by the first of the names that stores use."""
    version = next((entry[name] for name in _VERSIONS if entry.get(name)), "")
    return str(version.timestamp() if isinstance(version, datetime) else version)


def upload(source: Path, url: str) -> None:
    """Move the finished local file `source` to `url`; `source` is gone afterwards."""
    if is_local(url):
        try:
            target = local_path(url)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
        except OSError as error:
            raise UserError(f"{url}: cannot be written ({error})") from error
        return
    seconds = _LIST_TIMEOUT + source.stat().st_size / _SLOWEST
    request(url, "written", lambda system, path: system.put_file(str(source), path), seconds)
    source.unlink()


def remove(url: str) -> None:
    """Delete the file at `url` if it exists."""
    if exists(url):
        request(url, "deleted", lambda system, path: system.rm_file(path))


def remove_tree(url: str) -> None:
    """Delete the directory `url` with all files in it."""
    request(url, "deleted", lambda system, path: system.rm(path, recursive=True), _LIST_TIMEOUT)


def sizes(url: str, names: Iterable[str] = ()) -> dict[str, int]:
    """Sizes in bytes of the files in the directory `url`, by name; local links are followed.

    It takes one listing. Over HTTP, where there are no reliable listings, it is one request for
    each of `names`, those of the files that matter.

    Raises:
        NotFoundError: There is no such directory.
        UserError: It cannot be listed.
    """
    if url.startswith(("http://", "https://")):
        found = {name: _info(join(url, name)) for name in names}
        return {name: int(info["size"] or 0) for name, info in found.items() if info}
    if is_local(url):
        return _local(url, "listed", _local_sizes)
    try:
        listing = request(
            url, "listed", lambda system, path: system.ls(path, detail=True), _LIST_TIMEOUT
        )
    except NotFoundError as error:
        raise NotFoundError(f"{url}: no such directory") from error
    return {
        posixpath.basename(str(entry["name"])): int(entry["size"] or 0)
        for entry in listing
        if entry["type"] == "file"
    }


def _local_sizes(directory: Path) -> dict[str, int]:
    if not directory.exists():
        raise NotFoundError(f"{directory}: no such directory")
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _info(url: str) -> dict[str, Any]:
    """`type` (`file` or `directory`) and `size`; empty if nothing is there."""
    try:
        return request(url, "read", lambda system, path: dict(system.info(path)))
    except NotFoundError:
        return {}


def _local(url: str, action: str, call: Callable[[Path], T]) -> T:
    """The result of `call` for a local `url`, whose name may be any; raises as `request`."""
    try:
        return call(local_path(url))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{url}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{url}: cannot be {action} ({error})") from error


def request(
    url: str,
    action: str,
    call: Callable[[AbstractFileSystem, str], T],
    seconds: float = REQUEST_TIMEOUT,
    progress: Callable[[], object] = lambda: None,
    total: float = math.inf,
) -> T:
    """The result of `call(file system, path)` for `url`, its errors as UserErrors.

    Raises:
        NotFoundError: There is nothing at `url`.
        UserError: Everything else that `explain` knows.
    """
    system, path = filesystem(url)
    if is_local(url):
        try:
            return call(system, path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"{url}: no such file") from error
        except OSError as error:
            raise UserError(f"{url}: cannot be {action} ({error})") from error
    try:
        return with_timeout(seconds, lambda: call(system, path), progress, total)
    except Exception as error:
        known = explain(_explained_by_listing(error, system, path), url, action)
        if known is not None:
            raise known from error
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{url}: no such file") from error
        raise


def _explained_by_listing(error: Exception, system: AbstractFileSystem, path: str) -> Exception:
    """`error`, or that of a listing where the response had a code but no reason."""
    if error_code(error) not in BARE_CODES:
        return error
    try:
        with_timeout(REQUEST_TIMEOUT, lambda: system.ls(posixpath.dirname(path)))
    except Exception as listing:  # noqa: BLE001 (only inspected; the caller raises)
        if error_code(listing) not in {*BARE_CODES, None}:
            return listing
    return error
