"""Shared by the tests of object storage: secrets, a small model, failing stores and messages."""

from dataclasses import dataclass
from pathlib import Path

import s3
import torch

from models.autoencoders.dvae import DVAEConfig

TOKEN = "Canary8tOkEnThatExpired"
SECRETS = (s3.CANARY, TOKEN)


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DVAEConfig(
            image_size=16, vocab=16, width=8, groups=2, patch=2, initial_width=8
        ).build()


def wrong_secret(server, proxy) -> dict[str, str]:
    return server.environment(AWS_SECRET_ACCESS_KEY=TOKEN)


def unknown_key(server, proxy) -> dict[str, str]:
    return server.environment(AWS_ACCESS_KEY_ID="nobody")


def expired_token(server, proxy) -> dict[str, str]:
    proxy.inject("", "expired")
    return proxy.environment(AWS_SESSION_TOKEN=TOKEN)


def forbidden(server, proxy) -> dict[str, str]:
    proxy.inject("", "403")
    return proxy.environment()


def overloaded(server, proxy) -> dict[str, str]:
    proxy.inject("", "503")
    return proxy.environment()


def unreachable(server, proxy) -> dict[str, str]:
    return server.environment(AWS_ENDPOINT_URL="http://127.0.0.1:9")


def no_endpoint(server, proxy) -> dict[str, str]:
    return server.environment(AWS_ENDPOINT_URL="127.0.0.1:9")


def no_credentials(server, proxy) -> dict[str, str]:
    kept = server.environment()
    del kept["AWS_ACCESS_KEY_ID"], kept["AWS_SECRET_ACCESS_KEY"]
    return {**kept, "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}


def unknown_profile(server, proxy) -> dict[str, str]:
    return server.environment(AWS_PROFILE="nobody")


MESSAGES = {
    wrong_secret: "the secret key is wrong; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    unknown_key: "the access key is unknown there; check AWS_ACCESS_KEY_ID",
    expired_token: "session token has expired; get new credentials and set AWS_SESSION_TOKEN",
    forbidden: "these credentials may not do this; ask the bucket's owner",
    overloaded: "fails or is overloaded",
    unreachable: "at 127.0.0.1:9 cannot be reached (Connection refused); check AWS_ENDPOINT_URL",
    no_endpoint: "cannot be reached (Invalid endpoint: 127.0.0.1:9); check AWS_ENDPOINT_URL",
    no_credentials: "there are none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    unknown_profile: "the profile in AWS_PROFILE is in no configuration file",
}


def check_message(outcome: Outcome, *texts: str) -> None:
    """One message with these texts, exit code 2, no traceback, no secret."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    for text in texts:
        assert text in outcome.err
    assert "Traceback" not in outcome.err
    assert not any(secret in outcome.err for secret in SECRETS)


def check_no_secrets(directory: Path) -> None:
    """No file holds a secret."""
    for path in directory.rglob("*"):
        if path.is_file():
            assert not any(secret.encode() in path.read_bytes() for secret in SECRETS), path
