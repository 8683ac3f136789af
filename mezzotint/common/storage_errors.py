"""The one table of storage errors: what a file system's exception means, and what to do.

Client libraries raise classes of their own, wrap them in others, and answer a HEAD request without
a reason. What counts is the store's error code, or else the innermost exception of the chain.
"""

import errno
import os
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from mezzotint.common.errors import UserError

_CLIENTS = {"aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "adlfs", "s3fs", "urllib3"}
"""Packages whose exceptions are a store's or the network's, never a mistake of ours."""

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_TOKEN = "its session token has expired; get new credentials and set AWS_SESSION_TOKEN"
_NONE = "there are none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_REGION = "the bucket is in another region; set AWS_DEFAULT_REGION"
_FORBIDDEN = "these credentials may not do this; ask the bucket's owner, or use others"

_REFUSED = {
    "SignatureDoesNotMatch": f"the secret key is wrong; {_KEYS}",
    "InvalidAccessKeyId": f"the access key is unknown there; {_KEYS}",
    "ExpiredToken": _TOKEN,
    "ExpiredTokenException": _TOKEN,
    "TokenRefreshRequired": _TOKEN,
    "InvalidToken": f"the session token is not valid; check AWS_SESSION_TOKEN, {_KEYS}",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "AccessDenied": _FORBIDDEN,
    "403": _FORBIDDEN,
    "401": f"it wants other credentials; {_KEYS}",
    "NoCredentialsError": _NONE,
    "PartialCredentialsError": _NONE,
    "CredentialRetrievalError": f"no credentials could be fetched; {_KEYS}",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "ProfileNotFound": "the profile in AWS_PROFILE is in no configuration file; correct it",
}
"""Message by error code or exception class; retrying does not help."""

_FAILING = {"500", "502", "503", "504", "InternalError", "ServiceUnavailable", "SlowDown"}
_FAILING |= {"429", "RequestTimeout", "OperationAborted"}
_UNREACHED = {
    *("EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"),
    *("ClientConnectorError", "ClientConnectorDNSError", "ClientConnectorSSLError"),
}
_USER = re.compile(r"(?<=://)[^/\s]*@")
_SECRET_PARAMETER = re.compile(
    r"([?&][\w-]*(?:signature|credential|token|secret|password|sig|key|keyid))=[^&\s\"')]*", re.I
)
BARE_CODES = frozenset({"400", "403"})
"""Codes of a response without a body; a listing of the same place states the reason."""


class NotFoundError(UserError):
    """There is nothing at a URL."""


class TransientError(UserError):
    """A network error or an overloaded store: retrying may help."""


class CredentialsError(UserError):
    """The store rejects the credentials, so nothing in it can be read."""


def explain(error: BaseException, url: str, action: str) -> UserError | None:
    """The error to raise after a call of a file system failed: `url` cannot be `action`.

    None if the exception is not the store's: a missing file, a programming error.
    """
    chain = list(_chain(error))
    code = error_code(error)
    names = [name for name in (code, *(type(one).__name__ for one in chain)) if name]
    failed = f"{url}: cannot be {action}"
    if code == "NoSuchBucket":
        return UserError(
            f"{url}: there is no such bucket{_at(chain)}; create it, or correct the URL"
        )
    if isinstance(error, FileNotFoundError):
        return None
    for name in names:
        if name in _REFUSED:
            message = _REFUSED[name]
            kind = UserError if message == _FORBIDDEN else CredentialsError
            return kind(f"{failed} ({name}): {message}")
    if set(names) & _UNREACHED or "Invalid endpoint" in str(error):
        return TransientError(
            f"{url}: the object store{_at(chain)} cannot be reached ({_cause(chain)}); check "
            "AWS_ENDPOINT_URL and the network"
        )
    if code in _FAILING:
        return TransientError(
            f"{failed}: the object store{_at(chain)} fails or is overloaded ({code}); "
            "try again later"
        )
    foreign = any(type(one).__module__.partition(".")[0] in _CLIENTS for one in chain)
    if isinstance(error, OSError) and not foreign and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{failed}: no disk space left on this machine; delete files")
    if isinstance(error, OSError) or foreign:
        return TransientError(f"{failed} ({_cause(chain)}); check the URL and the network")
    return None


def error_code(error: BaseException) -> str | None:
    """The error code in a store's response, or its HTTP status."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict) and "Code" in response.get("Error", {}):
            return str(response["Error"]["Code"])
        if isinstance(status := getattr(one, "status", None), int):
            return str(status)
    return None


def redact(text: str) -> str:
    """`text` without credentials in URLs and without MLflow's password or token."""
    for secret in _mlflow_secrets():
        text = text.replace(secret, "...")
    return _SECRET_PARAMETER.sub(r"\1=***", _USER.sub("", text))


def _mlflow_secrets() -> list[str]:
    found = [os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")]
    userinfo, _, _ = os.environ.get("MLFLOW_TRACKING_URI", "").rpartition("@")
    password = userinfo.rpartition("://")[2].partition(":")[2]
    found += [password, unquote(password)]
    return [secret for secret in found if len(secret) > 3]  # a shorter one would garble text


def check_no_credentials(url: str) -> str:
    """`url` itself.

    Raises:
        ValueError: It holds credentials, which would get into recipes and logs.
    """
    if _USER.search(url):
        raise ValueError(
            f"{redact(url)}: a URL must not hold credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    return url


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, the outermost first."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def _at(chain: list[BaseException]) -> str:
    """` at HOST`, the endpoint of the request, if it is known."""
    tried = next((one.kwargs.get("endpoint_url") for one in chain if hasattr(one, "kwargs")), None)
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    host = urlsplit(str(tried or named or "")).netloc.rpartition("@")[2]
    return f" at {host}" if host else ""


def _cause(chain: list[BaseException]) -> str:
    """The message of the innermost error, on one line."""
    last = next((one for one in reversed(chain) if str(one)), chain[-1])
    if isinstance(last, OSError) and last.errno and last.errno > 0:
        text = os.strerror(last.errno)
    else:
        text = str(last.args[-1] if isinstance(last, OSError) and last.args else last)
    return redact(" ".join(text.split())) or type(last).__name__
