"""Images per second of the processor that a data stream decodes, beside webdataset and others.

    python -m venv peers_streams
    peers_streams/bin/pip install -c constraints.txt . mosaicml-streaming==0.13.0 litdata==0.2.76
    peers_streams/bin/python benchmarks/streams.py [--quick] [--sets DIR] [--json FILE]

The same 5,000 JPEG files of 256 x 256 pixels, parts of three photographs, as each one's shards on
the local disk; batches of 64 by two workers, at 256 pixels as they are and resized to 64. Every
contender runs in a process of its own, in turns; the processor's seconds are those of all of its
processes, also of those that have ended, between the 20th batch and the last, in one epoch.
Nothing is converted to floating point, which is the device's work, except where it says `float`.
`decoding` is the decoder alone, in one process.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from peers_streams import PEERS, write_sets  # noqa: E402
from timing import machine  # noqa: E402

from data_pipeline.batch import Batch  # noqa: E402
from data_pipeline.config import DataConfig, ImageConfig  # noqa: E402
from data_pipeline.dataset import open_dataset  # noqa: E402
from data_pipeline.images import decode  # noqa: E402
from data_pipeline.stream import Stream  # noqa: E402

BATCH, WORKERS, WARM = 64, 2, 20
Batches = Iterator[int]
"""Numbers of images, batch after batch, without an end."""


def mezzotint(sets: Path, size: int, workers: int) -> Batches:
    """Ours, in an epoch's order."""
    return (len(batch.keys) for batch in _stream(sets, size, workers))


def mezzotint_float(sets: Path, size: int, workers: int) -> Batches:
    """Ours with the conversion that is a device's, on the processor."""
    return (len(batch.images) for batch in _stream(sets, size, workers))


def mezzotint_scaled(sets: Path, size: int, workers: int) -> Batches:
    """Ours with scaled decoding, which changes values."""
    return (len(batch.keys) for batch in _stream(sets, size, workers, scaled=True))


def _stream(sets: Path, size: int, workers: int, *, scaled: bool = False) -> Iterable[Batch]:
    image = ImageConfig(size=size, scaled_decoding=scaled)
    config = DataConfig(url=str(sets / "tar"), image=image, workers=workers)
    return Stream(open_dataset(config), global_batch=BATCH, rank=0, world=1, seed=0)


def decoding(sets: Path, size: int, workers: int) -> Batches:
    """The decoder and the resize alone."""
    files = [path.read_bytes() for path in sorted((sets / "files").glob("*.jpg"))[:512]]
    config = ImageConfig(size=size)
    while True:
        for first in range(0, len(files), BATCH):
            yield sum(len(decode(one, config, "")) > 0 for one in files[first : first + BATCH])


CONTENDERS: dict[str, Callable[[Path, int, int], Batches]] = {
    "mezzotint": mezzotint,
    "mezzotint, float": mezzotint_float,
    "mezzotint, scaled": mezzotint_scaled,
    "decoding": decoding,
    **PEERS,
}


def processes() -> list[psutil.Process]:
    """This one and its workers."""
    here = psutil.Process()
    return [here, *here.children(recursive=True)]


def busy() -> float:
    """Seconds of the processor so far, with those of processes that have ended."""
    times = [each.cpu_times() for each in processes()]
    ended = sum(each.children_user + each.children_system for each in times)
    return ended + sum(each.user + each.system for each in times)


def run_one(name: str, sets: Path, size: int, batches: int) -> dict[str, float]:
    """One contender in this process."""
    torch.set_num_threads(1)
    stream = CONTENDERS[name](sets, size, WORKERS)
    for _ in range(WARM):
        next(stream)
    count, started, used = 0, time.perf_counter(), busy()
    for _ in range(batches):
        count += next(stream)
    used, wall = busy() - used, time.perf_counter() - started
    largest = max(each.memory_info().rss for each in processes())
    return {
        "per_cpu_s": count / used,
        "per_s": count / wall,
        "largest_process_mib": largest / 2**20,
    }


def measure(sets: Path, size: int, rounds: int, batches: int) -> dict[str, dict[str, float]]:
    """Medians of all contenders, in turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            command = [sys.executable, __file__, "--one", name, "--sets", str(sets)]
            command += ["--size", str(size), "--batches", str(batches)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {
            **{key: statistics.median(each[key] for each in runs) for key in runs[0]},
            "least": min(each["per_cpu_s"] for each in runs),
            "most": max(each["per_cpu_s"] for each in runs),
        }
        for name, runs in found.items()
    }


def write_files(directory: Path, count: int) -> None:
    """Parts of photographs that come with packages, 256 x 256, of about 26 kB."""
    from importlib.resources import files

    from PIL import Image

    directory.mkdir(parents=True)
    samples = files("matplotlib") / "mpl-data" / "sample_data"
    flowers = files("sklearn.datasets") / "images"
    paths = [samples / "grace_hopper.jpg", flowers / "china.jpg", flowers / "flower.jpg"]
    photographs = [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in paths]
    rng = np.random.default_rng(0)
    for index in range(count):
        image = photographs[index % len(photographs)]
        side = int(rng.integers(256, min(image.size) + 1))
        left, top = (int(rng.integers(0, each - side + 1)) for each in image.size)
        part = image.crop((left, top, left + side, top + side)).resize((256, 256))
        part.save(directory / f"{index:05d}.jpg", quality=93)
        (directory / f"{index:05d}.txt").write_text(f"photograph {index}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--sets", type=Path, help="where the sets are, or are made and kept")
    parser.add_argument("--json", type=Path, help="also write everything there")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=256, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, default=50, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run_one(given.one, given.sets, given.size, given.batches)))
        return
    with TemporaryDirectory() as temporary:
        sets = given.sets or Path(temporary)
        if not (sets / "files").exists():
            write_files(sets / "files", 400 if given.quick else 5000)
            write_sets(sets, 500)
        rounds, batches = (1, 5) if given.quick else (3, 50)
        found = {f"{size} px": measure(sets, size, rounds, batches) for size in (256, 64)}
    tree = {"machine": machine(), **found}
    if given.json:
        given.json.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    for name, table in found.items():
        print(f"{name}: images per second of the processor [least, most]; largest process")
        for contender, row in table.items():
            spread = f"[{row['least']:,.0f}, {row['most']:,.0f}]"
            memory = f"{row['largest_process_mib']:,.0f} MiB"
            print(f"  {contender:24} {row['per_cpu_s']:7,.0f} {spread:18} {memory}")


if __name__ == "__main__":
    main()
