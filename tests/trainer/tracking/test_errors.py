"""What a tracking server's answers mean: the cause, the next step, and never a password."""

import pytest

from mezzotint.common.storage_errors import redact
from trainer.tracking.address import TrackingError, check_uri
from trainer.tracking.errors import explain

URI = "http://user:canary@tracking.example:5000/mlflow"


@pytest.mark.parametrize(
    "uri", ["server:5000", "htp://server:5000", "./mlruns", "http://", "http://server:port", "x"]
)
def test_what_is_no_address_is_refused_with_an_example(uri):
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI=.*http://HOST:5000"):
        check_uri(uri)


def test_a_refused_address_does_not_show_its_password(monkeypatch):
    uri = "htp://user:ca@na/ry@server"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError) as refused:
        check_uri(uri)
    assert "na/ry" not in str(refused.value)
    assert "ca@na" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [URI, "https://server", "sqlite:////a/mlflow.db", "mysql+pymysql://u:p@h/db", "databricks"],
)
def test_addresses_of_every_kind_of_store_are_taken(uri):
    check_uri(uri)


ENDPOINT = "API request to endpoint /api/2.0/mlflow/runs/create failed with error code"
REQUEST = f"API request to {URI}/api/2.0/mlflow/runs/create failed with exception"


@pytest.mark.parametrize(
    ("said", "cause", "step"),
    [
        (
            f"{ENDPOINT} 403 != 200. Response body: 'Invalid Host header - possible DNS rebinding'",
            "Invalid Host header",
            "--allowed-hosts tracking.example:5000,tracking.example",
        ),
        (f"{ENDPOINT} 401 != 200. Response body: 'no'", "(401)", "MLFLOW_TRACKING_PASSWORD"),
        (f"{ENDPOINT} 403 != 200. Response body: 'no'", "(403)", "ask its owner"),
        (f"{ENDPOINT} 404 != 200. Response body: '<html>'", "(404)", "check MLFLOW_TRACKING_URI"),
        (f"{REQUEST} [Errno 111] Connection refused", "nothing listens", "start it"),
        (f"{REQUEST} Read timed out. (read timeout=5)", "does not respond in time", "TIMEOUT"),
        (f"{REQUEST} NameResolutionError(tracking.example)", "cannot resolve", "check MLFLOW"),
        (f"{REQUEST} SSLError WRONG_VERSION_NUMBER", "does not speak TLS", "use http://"),
        (f"{REQUEST} RemoteDisconnected", "cannot be reached", "check that it is up"),
        (
            "RESOURCE_DOES_NOT_EXIST: Run with id=0 not found",
            "does not know this run, which was created in http://elsewhere",
            "set MLFLOW_TRACKING_URI",
        ),
        ("something\nlong", "MLflow reports: something", ""),
    ],
)
def test_an_answer_is_explained_with_its_cause_and_the_next_step(said, cause, step):
    message = explain(RuntimeError(said), URI, "http://elsewhere")
    assert cause in message
    assert step in message
    assert "canary" not in message
    assert "user" not in message.replace("the user or", "").replace("this user", "")
    assert "\n" not in message


def test_a_password_is_hidden_as_it_is_written_and_as_it_is_read(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pa%40ss%2Fword@server")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-canary")
    said = "pa%40ss%2Fword refused, pa@ss/word too, Bearer token-canary"
    assert redact(said) == "... refused, ... too, Bearer ..."
