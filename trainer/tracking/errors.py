"""What a tracking server's answers mean, in a sentence with the next step and no password."""

import re
from urllib.parse import SplitResult, urlsplit

from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact

STORES = {"sqlite", "postgresql", "mysql", "mssql"}
EXAMPLES = "like http://HOST:5000, or sqlite:////FOLDER/mlflow.db"
LENGTH = 300


class TrackingError(UserError):
    """MLflow did not take something."""


def check_uri(uri: str) -> None:
    """Refuse what can be no address of a tracking store.

    Raises:
        Refused: it has no known scheme, or no host.
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
            raise TrackingError(f"{shown}: names no host; set it to an address {EXAMPLES}")
    elif kind not in STORES and not parts.scheme.startswith("databricks") and uri != "databricks":
        raise TrackingError(
            f"{shown}: is no address of a tracking server; set it to one {EXAMPLES}"
        )


def explain(error: Exception, uri: str, store: str | None = None) -> str:
    """What to do about an error of MLflow's client; `store` is where the run was made."""
    said = redact(str(error)).strip()
    parts = urlsplit(uri)
    server = f"the MLflow server at {redact(f'{parts.scheme}://{parts.netloc}')}"
    code = re.search(r"error code (\d{3})|(\d{3}) (?:Client|Server) Error", said)
    status = next((int(each) for each in code.groups() if each), 0) if code else 0
    if "Invalid Host header" in said:
        host = parts.netloc.rpartition("@")[2]
        return (
            f"{server} refuses its own host name (Invalid Host header): start it with "
            f"--allowed-hosts {','.join(dict.fromkeys([host, _host(parts)]))}, or put a name or "
            "address that it allows into MLFLOW_TRACKING_URI"
        )
    if status == 401:
        return (
            f"{server} refuses the user or the password (401): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what it knows"
        )
    if status == 403:
        return (
            f"{server} does not let this user do that (403): ask its owner for the right to write"
        )
    if "RESOURCE_DOES_NOT_EXIST: Run" in said:
        return (
            f"{server} does not know this run, which was made in {store}: set MLFLOW_TRACKING_URI "
            "to that, or remove tracking.json from the run directory to send all of it anew"
        )
    if status == 404 and "RESOURCE_DOES_NOT_EXIST" not in said:
        return f"{server} is none, or has another path (404): check MLFLOW_TRACKING_URI"
    for pattern, sentence in CAUSES.items():
        if re.search(pattern, said):
            return sentence.format(server=server)
    line = said.splitlines()[0] if said else type(error).__name__
    return f"MLflow says: {line[:LENGTH]}"


def _host(parts: SplitResult) -> str:
    return parts.hostname or ""


CAUSES = {
    "NameResolutionError|Failed to resolve": (
        "{server} has a host name that this machine cannot find: check MLFLOW_TRACKING_URI"
    ),
    "Connection refused": (
        "nothing listens where {server} should be: start it, or check MLFLOW_TRACKING_URI"
    ),
    "timed out|Timeout": (
        "{server} does not answer in time: see whether it is well; MLFLOW_HTTP_REQUEST_TIMEOUT "
        "sets how many seconds are waited"
    ),
    "WRONG_VERSION_NUMBER": "{server} does not speak TLS: use http:// in MLFLOW_TRACKING_URI",
    "CERTIFICATE_VERIFY_FAILED": (
        "{server} has a certificate that this machine does not trust: "
        "name its authority's file in MLFLOW_TRACKING_SERVER_CERT_PATH"
    ),
    "Connection aborted|RemoteDisconnected|Connection reset|Network is unreachable|No route": (
        "{server} cannot be reached: see whether it is well"
    ),
    "No module named '(sqlalchemy|alembic|flask)": (
        "this machine has mlflow-skinny, which sends to servers only: set MLFLOW_TRACKING_URI, or "
        "pip install 'mezzotint[tracking]'"
    ),
}
