import socket
import threading
import time
from contextlib import closing
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_pipeline.packing import fetch as module
from data_pipeline.packing.fetch import Downloader, fetch
from data_pipeline.packing.source import InvalidSample


class Site(BaseHTTPRequestHandler):
    """Answers a path by its first word; a path with a number fails that many times before."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, dict[str, str]]]

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        word, _, number = self.path.strip("/").partition("-")
        tries = sum(path == self.path for path, _ in self.server.seen)
        match word:
            case "late" if tries <= int(number):
                self.answer(503, b"", {"Retry-After": "0.0" if tries == 1 else "0"})
            case "busy":
                self.answer(429, b"", {"Retry-After": number})
            case "date":
                self.answer(503, b"", {"Retry-After": formatdate(time.time() + 9000, usegmt=True)})
            case "cut" if tries <= int(number):
                self.answer(200, b"half", {"Content-Length": "8"})
                self.close_connection = True
            case "gone":
                self.answer(404, b"")
            case "far":
                self.answer(
                    302, b"", {"Location": f"/far-{int(number) - 1}" if number != "0" else "/x"}
                )
            case "file":
                self.answer(302, b"", {"Location": "file:///etc/passwd"})
            case "noai":
                self.answer(200, b"image", {"X-Robots-Tag": "otherbot: noindex, NoAI"})
            case "large":
                self.answer(200, b"x" * 2000)
            case "slow":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.drip(b"x")
            case _:
                self.answer(200, b"image")

    def drip(self, content):
        try:
            for _ in range(100):
                self.wfile.write(content)
                time.sleep(0.05)
        except OSError:
            self.close_connection = True

    def answer(self, status, content, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """No output."""


class Server(ThreadingHTTPServer):
    daemon_threads = True


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(module, "_BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Site) as server:
        server.seen = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()


def reason(url):
    with closing(Downloader()) as downloader, pytest.raises(InvalidSample) as error:
        fetch(url, downloader)
    return error.value.fault, str(error.value).replace(f"{url}: ", "")


def test_an_image_is_fetched_by_a_named_agent_without_credentials(site, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert fetch(f"{site.url}/image.png#part") == b"image"
    ((path, headers),) = site.seen
    assert path == "/image.png"
    assert headers["User-Agent"].startswith("mezzotint")
    assert "Authorization" not in headers


def test_letters_outside_ascii_are_quoted(site):
    assert fetch(f"{site.url}/café bleu%20[1].png?q=ü&r=50%") == b"image"
    assert site.seen[0][0] == "/caf%C3%A9%20bleu%20%5B1%5D.png?q=%C3%BC&r=50%25"


@pytest.mark.parametrize("path", ["late-2", "cut-1", "cut-2"])
def test_a_failure_of_the_moment_is_tried_again(site, path):
    assert fetch(f"{site.url}/{path}") == b"image"
    assert len(site.seen) == int(path[-1]) + 1


@pytest.mark.parametrize(
    ("path", "expected", "tries"),
    [
        ("late-9", "status 503 (3 attempts)", 3),
        ("busy-0", "status 429 (3 attempts)", 3),
        ("busy-7200", "status 429, to be tried again in 7,200 s", 1),
        ("date", "status 503, to be tried again in", 1),
        ("cut-9", "the connection ended early (3 attempts)", 3),
        ("gone", "status 404", 1),
        ("far-9", "more than 5 redirects", 6),
        ("file", "not a valid URL or response", 1),
        ("noai", "its server says X-Robots-Tag: noai", 1),
    ],
)
def test_a_download_that_fails_is_named(site, path, expected, tries):
    fault, detail = reason(f"{site.url}/{path}")
    assert fault == "download failed"
    assert detail.startswith(expected)
    assert len(site.seen) == tries


def test_a_server_is_given_the_time_that_it_asks_for(site, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    reason(f"{site.url}/busy-7")
    assert waits == [7.0, 7.0]


def test_a_file_that_is_too_large_is_not_read_to_its_end(site, monkeypatch):
    monkeypatch.setattr(module, "_BYTES", 1000)
    assert reason(f"{site.url}/large")[1] == "larger than 1,000 bytes"


def test_a_server_that_sends_slowly_is_given_up(site, monkeypatch):
    monkeypatch.setattr(module, "_DEADLINE", 0.3)
    monkeypatch.setattr(module, "_CHUNK", 1)
    start = time.monotonic()
    assert reason(f"{site.url}/slow")[1] == "not complete after 0 s"
    assert time.monotonic() - start < 3


def test_a_server_that_sends_its_header_slowly_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "_DEADLINE", 0.2)
    monkeypatch.setattr(module, "_IDLE", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                    for _ in range(60):
                        connection.sendall(b"x")
                        time.sleep(0.05)
                except OSError:
                    return

        threading.Thread(target=drip, daemon=True).start()
        start = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/0.png"
        assert reason(url)[1] == "not complete after 0 s"
        assert time.monotonic() - start < 2.5


def test_a_host_that_is_not_there_is_named(site):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    fault, detail = reason(f"http://127.0.0.1:{port}/0.png")
    assert fault == "download failed"
    assert "Connection refused" in detail
    assert detail.endswith("(3 attempts)")


@pytest.mark.parametrize("url", ["http://[bad/0.png", "http://host:port/0.png", "http://"])
def test_what_is_no_url_is_named_and_not_tried(url):
    fault, detail = reason(url)
    assert fault == "image missing"
    assert detail.startswith("not a valid URL (")


def test_credentials_in_a_url_are_refused_and_not_shown(site):
    fault, detail = reason("http://somebody:secret@127.0.0.1/0.png")
    assert "secret" not in detail
    assert "must not hold credentials" in detail
    assert fault == "image missing"
    assert site.seen == []


def test_a_local_path_that_is_no_file_is_named(tmp_path):
    assert reason(str(tmp_path)) == ("image missing", "not a file")
    assert reason(str(tmp_path / "x.png")) == (
        "image missing",
        "no such file or directory",
    )
