"""The dashboard answers to this machine's names, and to no others."""

import socket

import pytest

from launch.tracking.ui import allowed_hosts, serve_ui
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


def test_the_address_of_a_server_is_shown_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:canary@tracking.example/mlflow")
    with pytest.raises(UserError, match=r"open https://tracking\.example/mlflow"):
        serve_ui(tmp_path, "127.0.0.1", 5000)
