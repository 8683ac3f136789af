"""The content of one file of a sample: local, in an object store, or over HTTP."""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import PackageNotFoundError, version
from stat import S_ISREG
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from data_pipeline.packing.source import InvalidSample
from data_pipeline.packing.tables.cells import shown
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import (
    CredentialsError,
    TransientError,
    check_no_credentials,
    redact,
)
from mezzotint.common.timeouts import with_timeout

HTTP = ("http://", "https://")
SCHEMES = (*HTTP, "s3://", "gs://", "gcs://", "abfs://", "file://")
"""What the URL of an image may start with."""

_BYTES = 1 << 28
_ATTEMPTS = 3
_BACKOFF = 0.5
"""Seconds before the second attempt, and twice as long before the third."""
_LONGEST_WAIT = 60.0
"""Seconds that a server may ask to wait before the next attempt."""
_IDLE = 20.0
"""Seconds to connect, and to wait for the next bytes."""
_DEADLINE = 120.0
"""Seconds for one attempt, however slowly the bytes come."""
_REDIRECTS = 5
_PARALLEL = 64
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Status codes after which another attempt may succeed."""
_NOT_FOR_TRAINING = frozenset({"noai", "noimageai"})
_CHUNK = 1 << 16


class _Failed(Exception):
    """A failed attempt; `wait` in seconds is what the server asks for."""

    def __init__(self, reason: str, *, again: bool, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.again = again
        self.wait = wait


class Downloader:
    """An HTTP client for images: keeps connections, tries again, and gives up in time."""

    def __init__(self) -> None:
        self._session = requests.Session()
        self._session.max_redirects = _REDIRECTS
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.auth = _no_auth
        self._session.headers.update({"User-Agent": _agent(), "Accept": "image/*, */*;q=0.5"})
        for scheme in HTTP:
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=_PARALLEL))

    def get(self, url: str) -> bytes:
        """The body at an HTTP URL.

        Raises:
            InvalidSample: The URL is not valid, or its image cannot be downloaded, is too large, or
                is not to be used for training.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return with_timeout(_DEADLINE + _IDLE, lambda: self._attempt(url))
            except TimeoutError:
                failed = _Failed(f"not complete after {_DEADLINE:.0f} s", again=False)
            except _Failed as error:
                failed = error
            if not failed.again or attempt == _ATTEMPTS:
                break
            time.sleep(max(failed.wait, _BACKOFF * 2 ** (attempt - 1)))
        tried = f" ({attempt} attempts)" if attempt > 1 else ""
        raise InvalidSample("download failed", f"{shown(redact(url))}: {failed}{tried}")

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _attempt(self, url: str) -> bytes:
        deadline = time.monotonic() + _DEADLINE
        try:
            with self._session.get(url, stream=True, timeout=_IDLE) as response:
                _check(response)
                content = bytearray()
                for chunk in response.iter_content(_CHUNK):
                    content += chunk
                    if len(content) > _BYTES:
                        raise _Failed(f"larger than {_BYTES:,} bytes", again=False)
                    if time.monotonic() > deadline:
                        raise _Failed(f"not complete after {_DEADLINE:.0f} s", again=False)
                return bytes(content)
        except requests.TooManyRedirects as error:
            raise _Failed(f"more than {_REDIRECTS} redirects", again=False) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Failed(_reason(error), again=True) from error
        except requests.exceptions.ChunkedEncodingError as error:
            raise _Failed("the connection ended early", again=True) from error
        except requests.exceptions.InvalidURL as error:
            raise InvalidSample("image missing", f"not a valid URL ({_reason(error)})") from error
        except (requests.RequestException, ValueError) as error:
            raise _Failed(f"not a valid URL or response ({_reason(error)})", again=False) from error


def fetch(url: str, downloader: Downloader | None = None) -> bytes:
    """The content of a file of one sample.

    `downloader` keeps connections for URLs over HTTP.

    Raises:
        InvalidSample: There is no such file; errors that concern all samples stay UserErrors.
    """
    try:
        check_no_credentials(url)
        if url.startswith(HTTP):
            return (downloader or Downloader()).get(url)
        return _read_local(url) if storage.is_local(url) else _read_stored(url)
    except (CredentialsError, TransientError):
        raise
    except (UserError, OSError, ValueError) as error:
        raise InvalidSample("image missing", _short(error)) from error


def _read_local(url: str) -> bytes:
    path = storage.local_path(url)
    status = path.stat()
    if not S_ISREG(status.st_mode):
        raise ValueError(f"{shown(url)}: not a file")
    if status.st_size > _BYTES:
        raise ValueError(f"{shown(url)}: larger than {_BYTES:,} bytes")
    with path.open("rb", buffering=0) as file:
        return file.read()


def _read_stored(url: str) -> bytes:
    if "::" in url or not urlsplit(url).netloc or not urlsplit(url).path.strip("/"):
        raise ValueError(f"{shown(url)}: not the URL of a file")
    return storage.read_bytes(url)


def _check(response: requests.Response) -> None:
    """Refuse a response that is no image to be used."""
    status = response.status_code
    if status in _AGAIN:
        wait = _retry_after(response.headers)
        if wait > _LONGEST_WAIT:
            raise _Failed(f"status {status}, to be tried again in {wait:,.0f} s", again=False)
        raise _Failed(f"status {status}", again=True, wait=wait)
    if status != requests.codes.ok:
        raise _Failed(f"status {status}", again=False)
    directives = set(re.split(r"[,:;\s]+", response.headers.get("X-Robots-Tag", "").lower()))
    if found := directives & _NOT_FOR_TRAINING:
        raise _Failed(f"its server says X-Robots-Tag: {min(found)}", again=False)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date; 0 without one."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Send no credentials, also not those of a .netrc file."""
    return request


def _agent() -> str:
    try:
        return f"mezzotint/{version('mezzotint')}"
    except PackageNotFoundError:
        return "mezzotint"


def _reason(error: BaseException) -> str:
    """The innermost cause of an error of the client, in short."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return shown(redact(str(error) or type(error).__name__))


def _short(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{shown(redact(str(error.filename)))}: {error.strerror.lower()}"
    return redact(str(error))
