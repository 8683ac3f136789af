"""Reading objects of S3 as a stream, by botocore's client.

Its calls block, which takes less of the processor's time than s3fs, which passes every piece
through an event loop (`benchmarks/fetching.py`). Everything but large reads is s3fs's.
"""

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from fsspec.config import conf

SCHEMES = ("s3://", "s3a://")
_CONNECTIONS = 32
"""Of a process to an object store at once."""
_CHUNK = 1 << 19


def is_readable(url: str) -> bool:
    """Whether `chunks` reads `url`: it is in S3, and fsspec's own configuration has no entry."""
    return url.startswith(SCHEMES) and not conf.get("s3")


def client_settings() -> dict[str, object]:
    """Settings of a client's configuration, by name."""
    settings: dict[str, object] = {"connect_timeout": 5, "max_pool_connections": _CONNECTIONS}
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
        # so that an endpoint that is not there is reported within 20 s
        settings["retries"] = {"mode": "standard", "total_max_attempts": 3}
    return settings


def chunks(url: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes of an object from `start` to `end` (exclusive), in one request.

    Raises:
        FileNotFoundError: There is no such object.
        BotoCoreError, ClientError: It cannot be read.
    """
    bucket, _, key = url.partition("://")[2].partition("/")
    part = {} if end is None else {"Range": f"bytes={start}-{end - 1}"}
    client = _client(os.getpid(), tuple(sorted(_environment().items())))
    try:
        body = client.get_object(Bucket=bucket, Key=key, **part)["Body"]
    except client.exceptions.NoSuchKey as error:
        raise FileNotFoundError(url) from error
    try:
        while chunk := body.read(_CHUNK):
            yield chunk
    finally:
        body.close()


def _environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@lru_cache(maxsize=2)
def _client(process: int, environment: tuple[tuple[str, str], ...]) -> Any:  # noqa: ANN401 (botocore makes the class of a client as it runs)
    """The client of this process, which has read this environment."""
    from botocore.config import Config
    from botocore.session import Session

    # what is read is compared with a SHA-256, so that the store's own check would be a second one
    config = Config(response_checksum_validation="when_required", **client_settings())
    return Session().create_client("s3", config=config)
