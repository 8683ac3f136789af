import fsspec
import pytest

from data_pipeline.config import DataConfig, TextConfig
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import check_no_credentials, explain, redact
from mezzotint.common.timeouts import with_timeout


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("s3://key:secret@bucket/set", "s3://bucket/set"),
        ("at https://user@host/x and gs://a:b@c.", "at https://host/x and gs://c."),
        ("https://h/x?X-Amz-Signature=abc&n=1", "https://h/x?X-Amz-Signature=***&n=1"),
        ("https://h/x?id=1&token=abc", "https://h/x?id=1&token=***"),
        ("https://h/x?X-Amz-Credential=a/b&X-Amz-Security-Token=c", "https://h/x?"
         "X-Amz-Credential=***&X-Amz-Security-Token=***"),
        ("mail me@example.org about s3://bucket/a@b", "mail me@example.org about s3://bucket/a@b"),
    ],
)  # fmt: skip
def test_redacted_urls_hold_no_secret(text, clean):
    assert redact(text) == clean


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/set", "https://user:secret@host/set"])
def test_a_url_with_credentials_is_refused_and_redacted(url):
    calls = (
        lambda: check_no_credentials(url),
        lambda: storage.read_bytes(url),
        lambda: DataConfig(url=url),
        lambda: DataConfig(url="x", encoder=url),
        lambda: TextConfig(tokenizer=url, length=1),
    )
    for call in calls:
        with pytest.raises((ValueError, UserError), match="must not hold credentials") as caught:
            call()
        if isinstance(caught.value, UserError):
            assert "secret" not in str(caught.value)


def test_paths_and_plain_urls_may_hold_an_at_sign():
    for url in ("a@b/set", "s3://bucket/a@b", "/x/y@z"):
        assert check_no_credentials(url) == url


def test_programming_errors_are_not_storage_errors(monkeypatch):
    def wrong(self, path, **options):
        raise KeyError("name")

    assert explain(KeyError("name"), "memory://x/y", "read") is None
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", wrong)
    with pytest.raises(KeyError):
        storage.read_bytes("memory://x/y")


def test_a_call_that_never_returns_times_out():
    import threading

    release = threading.Event()
    with pytest.raises(TimeoutError, match=r"no response for 0 s"):
        with_timeout(0.1, release.wait)
    release.set()
    assert with_timeout(5, lambda: 7) == 7
