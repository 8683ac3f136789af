"""Opening sets of a million and of 250 million samples: processor time, memory, order, resume.

    .venv/bin/python benchmarks/open_set.py [--quick] [--json FILE]

The sets have real manifests and indexes; their tars are sparse files, of which none is read. Each
figure is of a new process: of opening, of the references of the first batch (1,024 samples), and
the largest of resuming at 20 random places. Memory is what the process takes more than after its
imports.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from data_pipeline.config import DataConfig, Selection  # noqa: E402
from data_pipeline.dataset import open_dataset  # noqa: E402
from data_pipeline.manifest import (  # noqa: E402
    AttributeCounts,
    Manifest,
    Part,
    SampleEntry,
    ShardColumns,
    ShardEntry,
    SplitCounts,
)
from data_pipeline.sets.counts import SetCounts  # noqa: E402
from data_pipeline.sets.shard_index import ShardIndex  # noqa: E402
from data_pipeline.sets.write import write_manifest  # noqa: E402
from data_pipeline.stream import Stream  # noqa: E402
from mezzotint.common.digests import sha256  # noqa: E402

BATCH, RESUMED, LANES = 1024, 20, 128


def shard(samples: int) -> tuple[ShardIndex, int]:
    """The index of a shard of images with captions and three attributes, and the bytes of it."""
    rng, end, entries = np.random.default_rng(0), 0, []
    for number in range(samples):
        members = {}
        for extension, size in (("jpg", rng.integers(8_000, 30_000)), ("txt", rng.integers(200))):
            members[extension] = (end + 512, int(size))
            end += 512 + -(-int(size) // 512) * 512
        attributes = {
            "width": int(rng.integers(200, 2000)),
            "class": int(rng.integers(1000)),
            "source": f"site {rng.integers(12)}",
        }
        entries.append(SampleEntry(key=f"{number:09d}", members=members, attributes=attributes))
    parts: list[Part | None] = ["train" if number % 20 else "test" for number in range(samples)]
    return ShardIndex.of(entries, {"random": parts}), end + 1024


def write_set(url: Path, shards: int, samples: int) -> None:
    """Write a set whose shards all have the same index."""
    url.mkdir()
    index, size = shard(samples)
    content, counts = index.to_bytes(), SetCounts({"random": "5% held out"})
    counts.add(index)
    entries = []
    for number in range(shards):
        name = f"web-{number:06d}.tar"
        entry = ShardEntry(name, size, sha256(name), None, samples, sha256(content))
        (url / name).touch()
        os.truncate(url / name, size)
        (url / entry.index_name).write_bytes(content)
        entries.append(entry)
    one = counts.splits["random"]
    manifest = Manifest(
        name="web",
        fields={"jpg": "an image", "txt": "its caption"},
        licence="none",
        provenance={},
        members={name: count * shards for name, count in counts.members.items()},
        attributes={
            name: AttributeCounts(
                samples=each.samples * shards,
                values=tuple((value, count * shards) for value, count in each.values or ()) or None,
            )
            for name, each in counts.attributes.items()
        },
        splits={
            "random": SplitCounts(
                description=one.description, train=one.train * shards, test=one.test * shards
            )
        },
        shard_columns=ShardColumns.of(entries),
    )
    write_manifest(str(url), manifest)


def _peak() -> float:
    """The peak memory of this process in MiB; `getrusage` begins with that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(url: str, lanes: int) -> dict[str, float]:
    """The figures of this process."""
    start = _peak()
    select = (Selection(split="random", part="train"),)
    begun = time.process_time()
    data = open_dataset(DataConfig(url=url, select=select, lanes=lanes))
    found = {
        "samples": len(data),
        "open s": time.process_time() - begun,
        "open MiB": _peak() - start,
    }
    data.prefetch = lambda shards: None  # type: ignore[method-assign]
    begun = time.process_time()
    stream = Stream(data, global_batch=BATCH, rank=0, world=1, seed=0)
    next(stream.sample_refs())
    found["first batch s"] = time.process_time() - begun
    places = random.Random(0)
    resumed = []
    for _ in range(RESUMED):
        state = stream.state_after(places.randrange(3 * len(data) // BATCH))
        begun = time.process_time()
        next(Stream(data, global_batch=BATCH, rank=0, world=1, seed=0, state=state).sample_refs())
        resumed.append(time.process_time() - begun)
    return {**found, "resume s": max(resumed), "all MiB": _peak() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the shards")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of:
        print(json.dumps(measure(options.of[0], int(options.of[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        scale = 100 if options.quick else 1
        for shards, samples in ((200, 5000), (50_000, 500), (50_000, 5000)):
            url = Path(directory, f"{shards}-{samples}")
            write_set(url, max(shards // scale, 1), samples)
            for lanes in (1, LANES):
                command = [sys.executable, __file__, "--of", str(url), str(lanes)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row = {"shards": shards // scale, "a shard": samples, "lanes": lanes}
                rows.append(row | json.loads(done.stdout))
                print("  ".join(f"{name}: {value:.4g}" for name, value in rows[-1].items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
