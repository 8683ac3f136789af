"""Timeouts and other settings of MLflow's client, by its own variables."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

CLIENT_ENVIRONMENT = {  # an unreachable server costs seconds, not the default's minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a repeated request could make a second run
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password in it
    "GIT_PYTHON_REFRESH": "quiet",
}


@contextmanager
def request_timeout(seconds: float) -> Iterator[None]:
    """Raise MLflow's request timeout: a server stores a large file before it responds."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = str(int(max(seconds, float(before))))
    try:
        yield
    finally:
        os.environ[name] = before
