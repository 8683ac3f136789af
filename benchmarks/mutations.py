"""What readers notice of 200 random mutations of a shard.

    make install
    .venv/bin/python benchmarks/mutations.py [--count 200] [--json FILE]

A set of five shards of 20 JPEG files and captions; the second is damaged (bytes changed, cut,
extended, a block of zeros, two blocks exchanged) and one epoch is read by our reader and by
webdataset, which decodes by Pillow, with its handlers `reraise_exception` (the default) and
`warn_and_continue`. An epoch is `refused` if an error is raised, `noticed` if there were warnings
alone, `silent` if there was nothing although samples are missing or differ, and `unharmed` if every
sample is right, where the damage lies in what is not read.
"""

import argparse
import io
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data_pipeline")]

from mutations import KINDS, mutations  # noqa: E402

from data_pipeline.config import DataConfig  # noqa: E402
from data_pipeline.dataset import Dataset, open_dataset  # noqa: E402
from data_pipeline.packing.shard_writer import RawSample, write_shards  # noqa: E402
from mezzotint.common.errors import UserError  # noqa: E402

Epoch = dict[str, tuple[bytes, bytes]]
"""Image, as decoded, and caption by key."""


def write_set(directory: str) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for number in range(100):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        content = io.BytesIO()
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(content, "JPEG", quality=93)
        caption = f"an image of colours number {number}"
        samples.append(
            RawSample(f"{number:03d}", {"jpg": content.getvalue(), "txt": caption.encode()})
        )
    write_shards(
        samples, directory, name="set", licence="CC0-1.0", provenance={}, shard_size=20, fields={}
    )


def decoded(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def ours(dataset: Dataset) -> Callable[[], Epoch]:
    def epoch() -> Epoch:
        dataset.reader.close()
        found, refused = {}, None
        for index, key in enumerate(dataset.keys()):
            try:
                image, caption = (dataset.member(index, name) for name in ("jpg", "txt"))
                found[key] = (decoded(image), caption)
            except UserError as error:
                refused = error
        if refused is not None:
            raise refused
        return found

    return epoch


def webdataset(shards: list[str], handler: str) -> Callable[[], Epoch]:
    os.environ["WDS_SECURE"] = "1"
    import webdataset as wds

    handle = getattr(wds.handlers, handler)

    def epoch() -> Epoch:
        samples = wds.WebDataset(shards, shardshuffle=False, handler=handle)
        decode = {"jpg": decoded, "txt": bytes}
        return {
            one["__key__"]: (one["jpg"], one["txt"])
            for one in samples.map_dict(**decode, handler=handle)
            if "jpg" in one and "txt" in one
        }

    return epoch


def outcome(epoch: Callable[[], Epoch], whole: Epoch) -> str:
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        try:
            found = epoch()
        except Exception:  # noqa: BLE001 (whatever a reader raises)
            return "refused"
    said = [one for one in noted if not issubclass(one.category, ResourceWarning)]
    if found == whole:
        return "unharmed"
    return "noticed" if said else "silent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write everything there")
    given = parser.parse_args()
    with TemporaryDirectory() as temporary:
        os.environ["MEZZOTINT_CACHE"] = f"{temporary}/cache"
        write_set(f"{temporary}/set")
        dataset = open_dataset(DataConfig(url=f"{temporary}/set"))
        shards = [f"{temporary}/set/{shard.name}" for shard in dataset.manifest.shards]
        readers = {
            "mezzotint": ours(dataset),
            "webdataset": webdataset(shards, "reraise_exception"),
            "webdataset, warn_and_continue": webdataset(shards, "warn_and_continue"),
        }
        whole = ours(dataset)()
        assert all(epoch() == whole for epoch in readers.values())
        content = Path(shards[1]).read_bytes()
        found: dict[str, dict[str, Counter[str]]] = {
            name: {kind: Counter() for kind in KINDS} for name in readers
        }
        for kind, changed in mutations(content, given.count):
            Path(shards[1]).write_bytes(changed)
            for name, epoch in readers.items():
                found[name][kind][outcome(epoch, whole)] += 1
    for name, kinds in found.items():
        total = sum(kinds.values(), Counter())
        print(f"{name}: {dict(total)}")
        for kind, counts in kinds.items():
            print(f"  {kind:10} {dict(counts)}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
