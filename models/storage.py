"""The file systems behind model directories, and what their errors mean."""

import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec.core
from fsspec import AbstractFileSystem

from mezzotint.common.errors import UserError

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_REFUSED = {
    *("SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "401", "403"),
    *("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed"),
    *("ProfileNotFound", "CredentialRetrievalError"),
}
_UNREACHED = {"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"}


def is_local(directory: str) -> bool:
    """Whether a model directory lies in this machine's file system."""
    return "://" not in directory or directory.startswith("file://")


@contextmanager
def opened(url: str, doing: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """The file system of `url` and the path inside it; what goes wrong there is a UserError.

    Endpoint and credentials come from the environment alone (`AWS_*`).

    Raises:
        UserError: credentials in the URL, or the store is missing, refuses or cannot be reached.
        FileNotFoundError: nothing is there; every caller has its own words for it.
    """
    if re.search(r"://[^/\s]*@", url):
        bare = re.sub(r"(?<=://)[^/\s]*@", "", url)
        raise UserError(f"{bare}: a URL must not hold credentials; set {_KEYS}")
    options: dict[str, object] = {}
    if url.startswith(("s3://", "s3a://")):
        options = {"config_kwargs": {"connect_timeout": 5}, "use_listings_cache": False}
        if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
            options["config_kwargs"] = {
                "connect_timeout": 5,
                "retries": {"mode": "standard", "total_max_attempts": 3},
            }
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise UserError(f"{url}: cannot be {doing} ({error})") from error
    try:
        yield system, str(path)
    except Exception as error:
        sentence = _sentence(error, system, str(path))
        if sentence is None:
            raise
        raise UserError(f"{url}: cannot be {doing}: {sentence}") from error


def _sentence(error: Exception, system: AbstractFileSystem, path: str) -> str | None:
    """Why, and what to do; None for an error that is no store's."""
    said = _code(error)
    if said in {"400", "403"}:  # an answer to HEAD has no reason in it, one to a listing has
        try:
            system.ls(posixpath.dirname(path))
        except Exception as told:  # noqa: BLE001 (looked at, and the first error is raised)
            said = _code(told) or said
    names = {said, *(type(one).__name__ for one in _chain(error))}
    if said == "NoSuchBucket":
        return "there is no such bucket; create it, or correct the URL"
    if isinstance(error, FileNotFoundError):
        return None
    if known := sorted(name for name in names if name in _REFUSED):
        return f"the credentials are refused ({known[0]}); check {_KEYS}, and AWS_SESSION_TOKEN"
    if names & {"NoCredentialsError", "PartialCredentialsError"}:
        return f"there are no credentials; set {_KEYS}"
    if names & _UNREACHED or "Invalid endpoint" in str(error):
        return "the object store cannot be reached; check AWS_ENDPOINT_URL and the network"
    if isinstance(error, OSError) or type(error).__module__.startswith(("botocore", "aiohttp")):
        words = f"{error}" or "no answer"  # a timeout says nothing
        return f"{words}; check the URL and the network"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str | None:
    """The error code in a store's answer."""
    for one in _chain(error):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict) and "Code" in answer.get("Error", {}):
            return str(answer["Error"]["Code"])
    return None
