"""Files behind local paths and fsspec URLs (``s3://``, ``gs://``, ``https://``, ``memory://``).

Endpoint, credentials and profile of an object store come from the environment alone (``AWS_*``).
Whatever goes wrong there is a UserError, and nothing hangs for ever.
"""

import os
import posixpath
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import fsspec.core
from fsspec import AbstractFileSystem

from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import BARE, check_no_credentials, code, reason

T = TypeVar("T")

_S3 = ("s3://", "s3a://")

ANSWER_SECONDS = 60.0
"""How long one answer, or one more byte of a transfer, may take. Stores that stall hang clients
far beyond their own timeouts."""
LIST_SECONDS = 600.0
"""How long a listing or a small file may take."""


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

    Raises:
        UserError: Nothing serves such URLs, or it holds credentials.
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
        raise UserError(f"{url}: {error}; install the package that serves it") from error
    return system, str(path)


def _options(url: str) -> dict[str, object]:
    if not url.startswith(_S3):
        return {}
    settings: dict[str, object] = {"connect_timeout": 5}
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
        # an endpoint that is not there is known in 20 s
        settings["retries"] = {"mode": "standard", "total_max_attempts": 3}
    # listings are not kept: other processes write to the store too
    return {"config_kwargs": settings, "use_listings_cache": False}


def _in_one_request(url: str) -> dict[str, int]:
    """Options that keep S3's client from asking for the size first and then for ranges."""
    return {"max_concurrency": 1} if url.startswith(_S3) else {}


def exists(url: str) -> bool:
    """Whether a file or directory is at ``url``."""
    return _kind(url) is not None


def is_file(url: str) -> bool:
    """Whether a file is at ``url``."""
    return _kind(url) == "file"


def read_bytes(url: str) -> bytes:
    """The whole file at ``url``.

    Raises:
        UserError: The file is not there or cannot be read.
    """
    try:
        options = _in_one_request(url)
        return _ask(
            url, "read", lambda system, path: bytes(system.cat_file(path, **options)), LIST_SECONDS
        )
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file") from error


def write_bytes(url: str, content: bytes) -> None:
    """Put ``content`` at ``url``, whole or not at all.

    Locally through a temporary file and a rename; object stores replace whole objects anyway.
    """
    if is_local(url):
        path = local_path(url)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"{url}: cannot be written ({error})") from error
        finally:
            temporary.unlink(missing_ok=True)
        return
    seconds = LIST_SECONDS
    _ask(url, "written", lambda system, path: system.pipe_file(path, content), seconds)


def walk(url: str) -> dict[str, int]:
    """Bytes of every file below the directory ``url``, by the path relative to it, sorted.

    Raises:
        UserError: The directory cannot be listed.
    """
    root, found = _ask(
        url,
        "listed",
        lambda system, path: (path.rstrip("/") + "/", system.find(path, detail=True)),
        LIST_SECONDS,
    )
    return {
        str(name).removeprefix(root): int(entry["size"] or 0)
        for name, entry in sorted(found.items())
    }


def download(url: str, target: Path, *, patience: float = ANSWER_SECONDS) -> None:
    """Copy the file at ``url`` to the local path ``target``, in one request.

    Args:
        url: What to copy.
        target: A local path; it holds anything if this raises.
        patience: Seconds in which at least one byte must arrive.

    Raises:
        UserError: It is not there or cannot be read.
        TransientError: The same, but trying again may help.
    """
    options = _in_one_request(url)

    def arrived() -> tuple[int, int] | None:
        try:
            status = target.stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    try:
        _ask(
            url,
            "read",
            lambda system, path: system.get_file(path, str(target), **options),
            patience,
            moved=arrived,
        )
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file; copy it there again") from error


def upload(source: Path, url: str) -> None:
    """Move the finished local file ``source`` to ``url``; ``source`` is gone afterwards."""
    if is_local(url):
        try:
            target = local_path(url)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
        except OSError as error:
            raise UserError(f"{url}: cannot be written ({error})") from error
        return
    seconds = LIST_SECONDS + source.stat().st_size / 1e6
    _ask(url, "written", lambda system, path: system.put_file(str(source), path), seconds)
    source.unlink()


def remove(url: str) -> None:
    """Delete the file at ``url`` if it is there."""
    if exists(url):
        _ask(url, "deleted", lambda system, path: system.rm_file(path))


def remove_directory(url: str) -> None:
    """Delete the empty directory ``url``; object stores have none."""
    if is_local(url):
        local_path(url).rmdir()


def sizes(url: str) -> dict[str, int]:
    """Bytes of every file directly inside the directory ``url``: one listing, no reads.

    Raises:
        UserError: The directory is not there.
    """
    try:
        listing = _ask(
            url, "listed", lambda system, path: system.ls(path, detail=True), LIST_SECONDS
        )
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such directory") from error
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
        try:
            found[name] = _ask(
                join(url, name), "read", lambda system, path: int(system.info(path)["size"] or 0)
            )
        except FileNotFoundError:
            continue
    return found


def _kind(url: str) -> str | None:
    """``file`` or ``directory``; None where nothing is."""
    try:
        return _ask(url, "read", lambda system, path: str(system.info(path)["type"]))
    except FileNotFoundError:
        return None


def _ask(
    url: str,
    doing: str,
    call: Callable[[AbstractFileSystem, str], T],
    seconds: float = ANSWER_SECONDS,
    moved: Callable[[], object] = lambda: None,
) -> T:
    """What ``call`` says of ``url``; faults become one sentence.

    Raises:
        FileNotFoundError: Nothing is there; every caller has its own words for it.
        UserError: All else.
    """
    system, path = filesystem(url)
    if is_local(url):
        try:
            return call(system, path)
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:
            raise FileNotFoundError(url) from error
        except OSError as error:
            raise UserError(f"{url}: cannot be {doing} ({error})") from error
    try:
        return within(seconds, lambda: call(system, path), moved)
    except Exception as error:
        known = reason(_in_words(error, system, path), doing)
        if known is None:
            raise
        raise known.error(url) from error


def _in_words(error: Exception, system: AbstractFileSystem, path: str) -> Exception:
    """``error``, or what a listing says where the store gave a number without a reason."""
    if code(error) not in BARE:
        return error
    try:
        within(ANSWER_SECONDS, lambda: system.ls(posixpath.dirname(path)))
    except Exception as told:  # noqa: BLE001 (looked at, and the first error is raised)
        if code(told) not in {*BARE, None}:
            return told
    return error


def within(seconds: float, call: Callable[[], T], moved: Callable[[], object] = lambda: None) -> T:
    """What ``call`` gives.

    Raises:
        TimeoutError: It took longer, and ``moved()`` stayed the same for so long. The call goes
            on in a thread that nobody waits for.
    """
    results: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 (raised again in the waiting thread)
            faults.append(error)

    thread = threading.Thread(target=run, daemon=True, name="storage")
    thread.start()
    seen, since = moved(), time.monotonic()
    while thread.is_alive() and time.monotonic() < since + seconds:
        thread.join(min(1.0, seconds / 4))
        if (now := moved()) != seen:
            seen, since = now, time.monotonic()
    if faults:
        raise faults[0]
    if not results:
        raise TimeoutError(f"no answer for {seconds:.0f} s")
    return results[0]
