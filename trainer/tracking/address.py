"""Addresses of tracking stores: MLFLOW_TRACKING_URI, made independent of the working directory.

The command line imports this at its start, so it imports little.
"""

import os
import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact

URI = "MLFLOW_TRACKING_URI"
DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}
EXAMPLES = "like http://HOST:5000, or sqlite:////FOLDER/mlflow.db"
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?):///([^?]*)(\?.*)?", re.DOTALL)
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(?:/|$)")


class TrackingError(UserError):
    """MLflow refused a request, or its server cannot be reached."""


def default_uri(runs: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or a sqlite file under the runs directory."""
    return tracking_uri() or sqlite_uri(runs.resolve() / "mlflow.db")


def tracking_uri() -> str | None:
    """`MLFLOW_TRACKING_URI` with an absolute path; None where it is not set."""
    uri = variable(URI)
    return None if uri is None else absolute_uri(uri)


def export_absolute_uri() -> None:
    """Make a relative path in `MLFLOW_TRACKING_URI` absolute for child processes and jobs."""
    uri = tracking_uri()
    if uri is not None:
        os.environ[URI] = uri


def absolute_uri(uri: str) -> str:
    """`uri` with an absolute path, if it is that of a sqlite file or of a folder."""
    if found := _SQLITE.fullmatch(uri):
        scheme, path, query = found.groups()
        if path in ("", ":memory:") or path.startswith("file:"):
            return uri
        return sqlite_uri(Path(unquote(path)), scheme) + (query or "")
    folder = folder_of(uri)
    return uri if folder is None else os.path.abspath(folder)


def sqlite_uri(path: Path, scheme: str = "sqlite") -> str:
    """The address of a sqlite file; SQLAlchemy takes a percent sign for an escape."""
    return f"{scheme}:///" + os.path.abspath(path).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite store; None for other stores."""
    found = _SQLITE.fullmatch(uri)
    return Path(unquote(found.group(2))) if found else None


def folder_of(uri: str) -> str | None:
    """The path of a store in a folder, as `file:PATH` or PATH; None for other stores."""
    if _HOST_AND_PORT.match(uri) or uri.startswith(("databricks", "uc:")):
        return None
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if parts.scheme == "":
        return uri
    return unquote(parts.path) if parts.scheme == "file" and parts.path else None


def variable(name: str) -> str | None:
    """A variable's value without surrounding space; None if it is unset or empty."""
    return os.environ.get(name, "").strip() or None


def check_uri(uri: str) -> None:
    """Refuse what cannot be the address of a tracking store.

    Raises:
        TrackingError: it has no known scheme, no host, or MLflow needs one more variable for it.
    """
    shown, advice = f"{URI}={redact(uri)!r}", f"set it to an address {EXAMPLES}"
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise TrackingError(f"{shown}: {redact(str(error))}; {advice}") from None
    scheme = parts.scheme.partition("+")[0]
    if scheme in {"http", "https"}:
        if not host:
            raise TrackingError(f"{shown}: has no host; {advice}")
    elif scheme == "sqlite":
        path = sqlite_path(uri)
        if path is None or str(path) in (".", ":memory:"):
            raise TrackingError(f"{shown}: names no file; {advice}")
    elif folder_of(uri) is not None:
        if (variable("MLFLOW_ALLOW_FILE_STORE") or "").lower() not in ("1", "true"):
            raise TrackingError(
                f"{shown}: is a folder, where MLflow keeps runs only with "
                f"MLFLOW_ALLOW_FILE_STORE=true; set that too, or {advice}"
            )
    elif scheme not in DATABASES | plugins() and not uri.startswith("databricks"):
        hint = f"http://{uri}" if _HOST_AND_PORT.match(uri) else None
        raise TrackingError(
            f"{shown}: is not the address of a tracking server; "
            + (f"set it to {hint}, or to an address {EXAMPLES}" if hint else advice)
        )


def plugins() -> set[str]:
    """Schemes of stores that installed packages add to MLflow."""
    return {point.name for point in entry_points(group="mlflow.tracking_store")}
