"""Explains errors of tracking servers: one sentence with the next step, without credentials."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact
from trainer.tracking.address import TrackingError

LENGTH = 300


def explain(error: Exception, uri: str, store: str | None = None) -> str:
    """What to do about an error of MLflow's client; `store` is where the run was created."""
    message = redact(str(error)).strip()
    parts = urlsplit(uri)
    server = store_name(uri)
    code = re.search(r"error code (\d{3})|(\d{3}) (?:Client|Server) Error", message)
    status = next((int(each) for each in code.groups() if each), 0) if code else 0
    if "Invalid Host header" in message:
        hosts = dict.fromkeys([parts.netloc.rpartition("@")[2], parts.hostname or ""])
        return (
            f"{server} refuses its own host name (Invalid Host header): start it with "
            f"--allowed-hosts {','.join(hosts)}, or put a name or "
            "address that it allows into MLFLOW_TRACKING_URI"
        )
    if status == 401:
        return (
            f"{server} refuses the user or the password (401): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what it knows"
        )
    if status == 403:
        return f"{server} forbids this user to write (403): ask its owner for the permission"
    if "must be in the 'active' state" in message:
        found = re.search(r"The (\w+) (\S+) must be in", message)
        entity, identifier = found.groups() if found else ("run", "ID")
        again = (
            "remove tracking.json from the run directory to upload everything as a new run"
            if entity == "run"
            else "set MLFLOW_EXPERIMENT_NAME to another one"
        )
        return (
            f"the {entity} {identifier} is deleted in {server}: `mlflow {entity}s restore "
            f"--{entity}-id {identifier}` restores it, or {again}"
        )
    if store is None and re.search("Run with id=|Run '.*' not found", message):
        return f"{server} does not know the run of MLFLOW_RUN_ID: set it to one that it has"
    if re.search("Run with id=|Run '.*' not found", message):
        return unknown_run(uri, store)
    if status == 404 and "RESOURCE_DOES_NOT_EXIST" not in message:
        return f"{server} is none, or has another path (404): check MLFLOW_TRACKING_URI"
    for pattern, sentence in CAUSES.items():
        if re.search(pattern, message):
            return sentence.format(server=server)
    line = message.splitlines()[0] if message else type(error).__name__
    return f"MLflow reports: {line[:LENGTH]}"


def unknown_run(uri: str, store: str | None) -> str:
    """What to do where a run was created in another store."""
    return (
        f"{store_name(uri)} does not know this run, which was created in {store}: set "
        "MLFLOW_TRACKING_URI to that, or remove tracking.json from the run directory to upload "
        "everything again"
    )


def store_name(uri: str) -> str:
    """A tracking store in a message, without credentials."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        return f"the MLflow server at {redact(f'{parts.scheme}://{parts.netloc}')}"
    return f"the MLflow store {redact(uri)}"


CAUSES = {
    "NameResolutionError|Failed to resolve": (
        "{server} has a host name that this machine cannot resolve: check MLFLOW_TRACKING_URI"
    ),
    "Connection refused": (
        "nothing listens where {server} should be: start it, or check MLFLOW_TRACKING_URI"
    ),
    "timed out|Timeout": (
        "{server} does not respond in time: check that it is up; MLFLOW_HTTP_REQUEST_TIMEOUT "
        "sets the timeout in seconds"
    ),
    "WRONG_VERSION_NUMBER": "{server} does not speak TLS: use http:// in MLFLOW_TRACKING_URI",
    "CERTIFICATE_VERIFY_FAILED": (
        "{server} has a certificate that this machine does not trust: "
        "name its authority's file in MLFLOW_TRACKING_SERVER_CERT_PATH, or set "
        "MLFLOW_TRACKING_INSECURE_TLS=true to trust any certificate"
    ),
    "Connection aborted|RemoteDisconnected|Connection reset|Network is unreachable|No route": (
        "{server} cannot be reached: check that it is up"
    ),
    "unable to open database file|readonly database": (
        "{server} cannot be opened or written: check the path in MLFLOW_TRACKING_URI and its "
        "permissions"
    ),
    "No module named '(psycopg|psycopg2|MySQLdb|pymysql|pyodbc)": (
        "{server} needs a driver that is not installed: pip install psycopg, pymysql or pyodbc, "
        "as MLFLOW_TRACKING_URI says"
    ),
    "No module named '(sqlalchemy|alembic|flask)": (
        "this machine has mlflow-skinny, which uploads to servers only: set MLFLOW_TRACKING_URI, "
        "or pip install 'mezzotint[tracking]'"
    ),
}


@contextmanager
def explain_errors(uri: str, store: str | None) -> Iterator[None]:
    """Turn any exception of MLflow's client into a TrackingError without credentials."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - requests, urllib3, SQLAlchemy and MLflow have their own
        raise TrackingError(explain(error, uri, store)) from None
