"""Explains errors of tracking servers: one sentence with the next step, without credentials."""

import re
from urllib.parse import urlsplit

from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact

STORES = {"sqlite", "postgresql", "mysql", "mssql"}
EXAMPLES = "like http://HOST:5000, or sqlite:////FOLDER/mlflow.db"
LENGTH = 300


class TrackingError(UserError):
    """MLflow refused a request, or its server cannot be reached."""


def check_uri(uri: str) -> None:
    """Refuse what cannot be the address of a tracking store.

    Raises:
        TrackingError: it has no known scheme, or no host.
    """
    shown = f"MLFLOW_TRACKING_URI={redact(uri)!r}"
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise TrackingError(
            f"{shown}: {redact(str(error))}; set it to an address {EXAMPLES}"
        ) from None
    kind = parts.scheme.partition("+")[0]
    if kind in {"http", "https"}:
        if not host:
            raise TrackingError(f"{shown}: has no host; set it to an address {EXAMPLES}")
    elif kind not in STORES and not parts.scheme.startswith("databricks") and uri != "databricks":
        raise TrackingError(
            f"{shown}: is not the address of a tracking server; set it to one {EXAMPLES}"
        )


def explain(error: Exception, uri: str, store: str | None = None) -> str:
    """What to do about an error of MLflow's client; `store` is where the run was created."""
    message = redact(str(error)).strip()
    parts = urlsplit(uri)
    server = f"the MLflow server at {redact(f'{parts.scheme}://{parts.netloc}')}"
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
    if "RESOURCE_DOES_NOT_EXIST: Run" in message:
        return (
            f"{server} does not know this run, which was created in {store}: set "
            "MLFLOW_TRACKING_URI to that, or remove tracking.json from the run directory to "
            "upload everything again"
        )
    if status == 404 and "RESOURCE_DOES_NOT_EXIST" not in message:
        return f"{server} is none, or has another path (404): check MLFLOW_TRACKING_URI"
    for pattern, sentence in CAUSES.items():
        if re.search(pattern, message):
            return sentence.format(server=server)
    line = message.splitlines()[0] if message else type(error).__name__
    return f"MLflow reports: {line[:LENGTH]}"


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
        "name its authority's file in MLFLOW_TRACKING_SERVER_CERT_PATH"
    ),
    "Connection aborted|RemoteDisconnected|Connection reset|Network is unreachable|No route": (
        "{server} cannot be reached: check that it is up"
    ),
    "No module named '(sqlalchemy|alembic|flask)": (
        "this machine has mlflow-skinny, which uploads to servers only: set MLFLOW_TRACKING_URI, "
        "or pip install 'mezzotint[tracking]'"
    ),
}
