"""The dashboard answers to this machine's names, and to no others."""

import socket
from pathlib import Path

import pytest

from launch.tracking.ui import allowed_hosts, dashboard_hint, serve_ui
from mezzotint.common.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's server imports warn


@pytest.fixture
def is_allowed():
    """MLflow's own check of a Host header."""
    from mlflow.server.security_utils import is_allowed_host_header

    return lambda host, header: is_allowed_host_header(allowed_hosts(host), header)


@pytest.mark.parametrize(
    "header",
    ["localhost:5000", "127.0.0.1:5000", "[::1]:5000", "login.cluster:5000", "login.cluster"],
)
def test_the_interface_accepts_the_names_of_its_machine(is_allowed, header):
    assert is_allowed("login.cluster", header)
    assert is_allowed("0.0.0.0", f"{socket.gethostname()}:5000")
    assert is_allowed("0.0.0.0", "10.1.2.3:5000")


@pytest.mark.parametrize("header", ["evil.example:5000", "evil.example", "login.cluster.evil:5000"])
def test_the_interface_rejects_other_host_names(is_allowed, header):
    assert not is_allowed("login.cluster", header)


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("", "Dashboard: mezzotint dashboard --runs 'my runs'"),
        ("sqlite:///rel.db", "Dashboard: mezzotint dashboard --runs 'my runs'"),
        ("https://me:canary@tracking.example/x", "MLflow: https://tracking.example/x"),
    ],
)
def test_the_proposed_way_to_see_the_runs_is_one_that_works(monkeypatch, uri, hint):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert dashboard_hint(Path("my runs")) == hint


def test_a_store_that_is_not_there_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///rel.db")
    with pytest.raises(UserError, match=f"^{tmp_path}/rel.db: no runs are tracked there yet"):
        serve_ui(Path("runs"), "127.0.0.1", 5000)


def test_the_address_of_a_server_is_shown_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:canary@tracking.example/mlflow")
    with pytest.raises(UserError, match=r"open https://tracking\.example/mlflow"):
        serve_ui(tmp_path, "127.0.0.1", 5000)
