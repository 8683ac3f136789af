"""The content of one file of a sample, local, in an object store, or over HTTP."""

import urllib.request
from http.client import HTTPException

from data_pipeline.packing.source import InvalidSample
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import CredentialsError, TransientError

_HTTP_TIMEOUT = 30
_HTTP_BYTES = 1 << 28


def fetch(url: str) -> bytes:
    """The content of a file of one sample.

    Raises:
        InvalidSample: There is no such file; errors that concern all samples stay UserErrors.
    """
    try:
        return _get(url) if url.startswith(("http://", "https://")) else storage.read_bytes(url)
    except (CredentialsError, TransientError):
        raise
    except (UserError, OSError, HTTPException) as error:
        raise InvalidSample("image missing", str(error)) from error


def _get(url: str) -> bytes:
    """An image over HTTP, with limits on time and size."""
    with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT) as response:
        content = bytes(response.read(_HTTP_BYTES + 1))
        if len(content) > _HTTP_BYTES:
            raise OSError(f"more than {_HTTP_BYTES:,} bytes")
        if response.length:  # a read of limited size does not check that the body is complete
            raise OSError(f"the connection ended {response.length:,} bytes early")
    return content
