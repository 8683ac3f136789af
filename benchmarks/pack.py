"""Packing a folder of images beside webdataset's writer with the same check of every image.

    .venv/bin/python benchmarks/pack.py [--quick] [--json FILE]

10,000 JPEG files of 256 x 256 pixels with caption files become shards of 500: by `mezzotint data
pack` with one process and with two, and by a loop of webdataset's ShardWriter that reads the files
and decodes every image, by the function that `pack` checks them with and by Pillow alone. `pack`
also records attributes, digests of contents and an index. Images per second of the processor,
imports and all processes included, and per second; medians of rounds in turns.
"""

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from PIL import Image  # noqa: E402

SHARD = 500


def ours(files: Path, out: Path, processes: int) -> None:
    from data_pipeline.packing.options import PackOptions
    from data_pipeline.packing.pack import pack

    pack(str(files), str(out), PackOptions(shard_size=SHARD, workers=1, processes=processes))


def webdataset(files: Path, out: Path, *, pillow: bool) -> None:
    from webdataset import ShardWriter

    from data_pipeline.images import read_image

    out.mkdir()
    with ShardWriter(f"{out}/x-%06d.tar", maxcount=SHARD, verbose=0) as writer:
        for number, path in enumerate(sorted(files.glob("*.jpg"))):
            content = path.read_bytes()
            if pillow:
                Image.open(io.BytesIO(content)).convert("RGB").load()
            else:
                read_image(content, path.name, max_pixels=50_000_000)
            text = path.with_suffix(".txt").read_bytes()
            sample = {"__key__": f"{number:09d}", "jpg": content, "txt": text}
            writer.write({**sample, "json": json.dumps({"source": path.name}).encode()})


CONTENDERS = {
    "mezzotint": lambda files, out: ours(files, out, 1),
    "mezzotint, 2 processes": lambda files, out: ours(files, out, 2),
    "webdataset, the same check": lambda files, out: webdataset(files, out, pillow=False),
    "webdataset, Pillow": lambda files, out: webdataset(files, out, pillow=True),
}


def run(name: str, files: Path) -> tuple[float, float]:
    """Seconds of the processor and of the clock of a whole process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "--of", name, str(files), f"{directory}/out"]
        subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return used, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="2,000 images, one round")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of:
        CONTENDERS[options.of[0]](Path(options.of[1]), Path(options.of[2]))
        return
    from streams import write_files  # it imports torch, which packing does without

    count, rounds = (2_000, 1) if options.quick else (10_000, 5)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory, "files")
        write_files(files, count)
        for number in range(rounds):
            names = list(CONTENDERS)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name].append(run(name, files))
    rows = {}
    for name, each in found.items():
        used, wall = (statistics.median(one[column] for one in each) for column in (0, 1))
        rows[name] = {"per_cpu_s": count / used, "per_s": count / wall}
        print(f"{name:28s} {count / used:8,.0f} images per CPU s {count / wall:8,.0f} per s")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
