"""A reverse proxy before a server: another host name, or a password."""

import base64
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Gate:
    """A reverse proxy before the server."""

    port: int

    def url(self, userinfo: str = "") -> str:
        """Its address, with or without user and password."""
        return f"http://{userinfo}127.0.0.1:{self.port}"


@contextmanager
def gate(server: str, *, host: str | None = None, password: str | None = None) -> Iterator[Gate]:
    """Hand requests on, under another host name, or only those that come with a password."""
    token = base64.b64encode(f"canary:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline()
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if password and self.headers.get("Authorization") != f"Basic {token}":
                self.answer(401, b"You are not authenticated")
                return
            headers = {key: value for key, value in self.headers.items() if key != "Host"}
            if host:
                headers["Host"] = host
            request = urllib.request.Request(
                server + self.path, body or None, headers, method=self.command
            )
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    self.answer(response.status, response.read())
            except urllib.error.HTTPError as error:
                self.answer(error.code, error.read())

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield Gate(proxy.server_port)
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
