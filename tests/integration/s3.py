"""A real S3 server (SeaweedFS) on this machine, and a proxy that counts and injects errors.

The server checks signatures, so a wrong secret is wrong. Nothing is left when the process that
started it dies, however it dies.
"""

import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import pytest
from aiohttp import web
from botocore.session import Session
from yarl import URL

WEED = Path(sys.executable).with_name("weed")
ACCESS = "mezzotint-tests"
CANARY = "Canary7sEcReT0nobodyMayPrintThisBird"
"""The secret key, which no file, log, message or table may contain."""

Fault = Literal["503", "500", "403", "expired", "cut", "stall", "hang"]


@dataclass(frozen=True)
class Server:
    """A running S3 server."""

    url: str
    home: Path
    access: str = ACCESS
    secret: str = CANARY

    def environment(self, **changes: str) -> dict[str, str]:
        """The environment with endpoint and credentials."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
            **changes,
        }

    def bucket(self, name: str) -> str:
        """Make a bucket; returns its URL."""
        client = Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.url,
            aws_access_key_id=self.access,
            aws_secret_access_key=self.secret,
        )
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}"


@contextmanager
def server() -> Iterator[Server]:
    """A server with empty storage, ready for requests."""
    home = Path(tempfile.mkdtemp(prefix="s3-"))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS, "secretKey": CANARY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (home / "data").mkdir()
    (home / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(8)
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    names += tuple(f"{name}.grpc" for name in names)
    command = [
        *("setpriv", "--pdeathsig", "KILL", str(WEED), "-logtostderr=true", "server"),
        *(f"-dir={home / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
        *(f"-s3.config={home / 's3.json'}", "-volume.max=500", "-master.volumeSizeLimitMB=64"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
    ]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{ports[3]}"
    try:
        _wait(url, process, home / "log")
        yield Server(url, home)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class Injected:
    """An error of requests for objects whose path contains a text."""

    text: str
    fault: Fault
    until: list[int]
    """Remaining occurrences."""


class Proxy:
    """Proxy of a server that counts downloads and injects errors."""

    def __init__(self, server: Server) -> None:
        self.url = ""
        self.fetched: Counter[str] = Counter()
        """How often each object's body was (partly) sent, by BUCKET/KEY."""
        self.requests = 0
        self._server = server
        self._injected: list[Injected] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def inject(self, text: str, fault: Fault, times: int = 10**9) -> None:
        """Respond to the next requests for objects whose path contains `text` with an error."""
        self._injected.append(Injected(text, fault, [times]))

    def reset(self) -> None:
        """Reset counts and injected errors."""
        self.fetched.clear()
        self._injected.clear()
        self.requests = 0

    def environment(self, **changes: str) -> dict[str, str]:
        """The environment with this proxy as endpoint."""
        return self._server.environment(AWS_ENDPOINT_URL=self.url, **changes)

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        """Close all connections."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        application = web.Application(client_max_size=1 << 30)
        runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
        async with aiohttp.ClientSession(auto_decompress=False) as self._client:
            application.router.add_route("*", "/{path:.*}", self._answer)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()
            await self._end.wait()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self._fault(request.path)
        match fault:
            case "503":
                return _refusal(request, 503, "ServiceUnavailable")
            case "500":
                return _refusal(request, 500, "InternalError")
            case "hang":
                await self._end.wait()
            case "403":
                return _refusal(request, 403, "AccessDenied")
            case "expired":
                return _refusal(request, 400, "ExpiredToken")
        target = URL(self._server.url + request.raw_path, encoded=True)
        sent = self._client.request(
            # the Host header is the client's, which its signature covers
            request.method,
            target,
            headers=request.headers,
            data=await request.read(),
            allow_redirects=False,
        )
        async with sent as found:
            whole = request.method == "HEAD"
            answer = web.StreamResponse(status=found.status, headers=_kept(found.headers))
            await answer.prepare(request)
            body = b"" if whole else await found.read()
            if request.method == "GET" and found.ok and "list-type" not in request.query:
                self.fetched[request.path.strip("/")] += 1
            if fault is not None:
                await answer.write(body[: len(body) // 2])
                if fault == "stall":
                    await self._end.wait()
                if request.transport is not None:  # the client may have left first
                    request.transport.abort()
                return answer
            await answer.write(body)
            await answer.write_eof()
            return answer

    def _fault(self, path: str) -> Fault | None:
        for one in self._injected:
            if one.text in path and one.until[0] > 0:
                one.until[0] -= 1
                return one.fault
        return None


def _refusal(request: web.Request, status: int, code: str) -> web.Response:
    text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
    body = "" if request.method == "HEAD" else text
    return web.Response(status=status, text=body, content_type="application/xml")


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of a response, without those of the connection."""
    dropped = {"connection", "keep-alive", "transfer-encoding", "date", "server"}
    return {name: value for name, value in headers.items() if name.lower() not in dropped}


@contextmanager
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy in front of a server."""
    found = Proxy(server)
    found.start()
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """A real S3 server for the session."""
    with server() as running:
        yield running


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path, seconds: float = 60) -> None:
    """Wait until the server responds."""
    deadline = time.monotonic() + seconds
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError as refused:
            refused.close()
            return
        except OSError:
            time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """TCP ports that are free now and are not given out to clients meanwhile."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0 and port not in ports:
                ports.append(port)
    return ports
