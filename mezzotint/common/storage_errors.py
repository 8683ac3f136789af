"""What a remote file system's error means, in one sentence with the next step.

Clients raise their own classes, wrap them in others, and answer a HEAD without a reason. What
counts is the store's error code or the innermost cause, wherever in the chain it stands.
"""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

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
"""By error code or class: nothing passes by waiting."""

_FAILING = {"500", "502", "503", "504", "InternalError", "ServiceUnavailable", "SlowDown"}
_FAILING |= {"429", "RequestTimeout", "OperationAborted"}
_UNREACHED = {
    *("EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"),
    *("ClientConnectorError", "ClientConnectorDNSError", "ClientConnectorSSLError"),
}
_USER = re.compile(r"(?<=://)[^/\s@]*@")
_SECRET_PARAMETER = re.compile(
    r"([?&][\w-]*(?:signature|credential|token|secret|password|sig|key|keyid))=[^&\s\"')]*", re.I
)
BARE = frozenset({"400", "403"})
"""Codes of an answer without a body: asking in another way tells the reason."""


class TransientError(UserError):
    """A fault of the network or of an overloaded store, which may pass."""


class CredentialsError(UserError):
    """A store refuses these credentials altogether: nothing in it can be had."""


@dataclass(frozen=True)
class Reason:
    """Why something failed, for after ``URL: ``."""

    sentence: str
    kind: type[UserError] = UserError

    def error(self, url: str) -> UserError:
        """As an exception about ``url``."""
        return self.kind(f"{url}: {self.sentence}")


def reason(error: BaseException, doing: str) -> Reason | None:
    """Why a call of a file system failed.

    Args:
        error: What it raised.
        doing: What was tried, as in "cannot be ``doing``".

    Returns:
        None for an error that is no store's: a file that is not there, a mistake of ours.
    """
    chain = list(_chain(error))
    said = code(error)
    names = [name for name in (said, *(type(one).__name__ for one in chain)) if name]
    if said == "NoSuchBucket":
        return Reason(f"there is no such bucket{_at(chain)}; create it, or correct the URL")
    if isinstance(error, FileNotFoundError):
        return None
    for name in names:
        if name in _REFUSED:
            words = _REFUSED[name]
            kind = UserError if words == _FORBIDDEN else CredentialsError
            return Reason(f"cannot be {doing} ({name}): {words}", kind)
    if set(names) & _UNREACHED or "Invalid endpoint" in str(error):
        return Reason(
            f"the object store{_at(chain)} cannot be reached ({_cause(chain)}); check "
            "AWS_ENDPOINT_URL and the network",
            TransientError,
        )
    if said in _FAILING:
        return Reason(
            f"cannot be {doing}: the object store{_at(chain)} fails or is overloaded ({said}); "
            "try again later",
            TransientError,
        )
    local = error if isinstance(error, OSError) and not _foreign(chain) else None
    if local is not None and local.errno in (errno.ENOSPC, errno.EDQUOT):
        return Reason(f"cannot be {doing}: no disk space left here; make room")
    if isinstance(error, OSError) or _foreign(chain):
        words = f"cannot be {doing} ({_cause(chain)}); check the URL and the network"
        return Reason(words, TransientError)
    return None


def code(error: BaseException) -> str | None:
    """The error code in a store's answer, or the answer's HTTP status."""
    for one in _chain(error):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict) and "Code" in answer.get("Error", {}):
            return str(answer["Error"]["Code"])
        if isinstance(status := getattr(one, "status", None), int):
            return str(status)
    return None


def scrubbed(text: str) -> str:
    """``text`` without the credentials that URLs in it may carry."""
    return _SECRET_PARAMETER.sub(r"\1=***", _USER.sub("", text))


def check_no_credentials(url: str) -> str:
    """``url`` itself.

    Raises:
        ValueError: It holds credentials; they would be written into recipes and logs.
    """
    if _USER.search(url):
        raise ValueError(
            f"{scrubbed(url)}: a URL must not hold credentials; set AWS_ACCESS_KEY_ID and "
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


def _foreign(chain: list[BaseException]) -> bool:
    return any(type(one).__module__.partition(".")[0] in _CLIENTS for one in chain)


def _at(chain: list[BaseException]) -> str:
    """`` at HOST`` of the endpoint that was asked, if it is known."""
    tried = next((one.kwargs.get("endpoint_url") for one in chain if hasattr(one, "kwargs")), None)
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    host = urlsplit(str(tried or named or "")).netloc.rpartition("@")[2]
    return f" at {host}" if host else ""


def _cause(chain: list[BaseException]) -> str:
    """The innermost error in words, on one line."""
    last = next((one for one in reversed(chain) if str(one)), chain[-1])
    if isinstance(last, OSError) and last.errno and last.errno > 0:
        text = os.strerror(last.errno)
    else:
        text = str(last.args[-1] if isinstance(last, OSError) and last.args else last)
    return scrubbed(" ".join(text.split())) or type(last).__name__
