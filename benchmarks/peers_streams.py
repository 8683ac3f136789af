"""webdataset, mosaicml-streaming and litdata for streams.py, as their documentation has them."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from models.torchvision_compat import ensure_torchvision

BATCH, SHARD = 64, 500


def write_sets(sets: Path, shard: int) -> None:
    """The files of `sets / "files"` as everybody's shards."""
    command = [sys.executable, "-m", "launch.cli.main", "data", "pack", str(sets / "files")]
    subprocess.run([*command, str(sets / "tar"), "--shard-size", str(shard)], check=True)
    files = sorted((sets / "files").glob("*.jpg"))
    if "mosaicml" in PEERS:
        ensure_torchvision()
        from streaming import MDSWriter

        columns = {"jpg": "bytes", "txt": "str"}
        with MDSWriter(out=str(sets / "mds"), columns=columns) as writer:
            for path in files:
                writer.write(
                    {"jpg": path.read_bytes(), "txt": path.with_suffix(".txt").read_text()}
                )
    if "litdata" in PEERS:
        from litdata import optimize

        optimize(
            fn=_sample, inputs=list(map(str, files)), output_dir=str(sets / "litdata"),
            chunk_bytes="12MB", num_workers=1,
        )  # fmt: skip


def _sample(path: str) -> dict[str, object]:
    return {"jpg": Path(path).read_bytes(), "txt": Path(path).with_suffix(".txt").read_text()}


def by_pillow(content: bytes, size: int) -> np.ndarray:
    """(size, size, 3) uint8."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(content)).convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def by_simplejpeg(content: bytes, size: int) -> np.ndarray:
    """(size, size, 3) uint8."""
    return _by_simplejpeg(content, size, 0)


def by_scaled_simplejpeg(content: bytes, size: int) -> np.ndarray:
    """The same of an image that is decoded at twice the size where it is larger."""
    return _by_simplejpeg(content, size, 2 * size)


def _by_simplejpeg(content: bytes, size: int, least: int) -> np.ndarray:
    import simplejpeg
    from PIL import Image

    pixels = simplejpeg.decode_jpeg(content, min_height=least, min_width=least)
    if pixels.shape[:2] == (size, size):
        return pixels
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def as_float(pixels: np.ndarray) -> torch.Tensor:
    """(3, size, size) in [-1, 1]."""
    floats = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()
    return floats.div_(127.5).sub_(1.0)


def webdataset(decode: Callable[[bytes, int], Any]) -> Callable[[Path, int, int], Iterator[int]]:
    """A WebLoader with a shuffle buffer of 1,000."""

    def batches(sets: Path, size: int, workers: int) -> Iterator[int]:
        import webdataset as wds

        urls = sorted(str(path) for path in (sets / "tar").glob("*.tar"))
        data = (
            wds.WebDataset(urls, resampled=True, shardshuffle=False)
            .shuffle(1000)
            .to_tuple("jpg", "txt")
            .map_tuple(lambda content: decode(content, size), bytes.decode)
            .batched(BATCH)
        )
        loader = wds.WebLoader(data, batch_size=None, num_workers=workers)
        return (len(images) for images, _ in loader)

    return batches


def mosaicml(sets: Path, size: int, workers: int) -> Iterator[int]:
    """A StreamingDataset with its default shuffle."""
    ensure_torchvision()
    from streaming import StreamingDataset

    class Images(StreamingDataset):
        def __getitem__(self, index: int) -> Any:  # noqa: ANN401
            sample = super().__getitem__(index)
            return torch.from_numpy(by_pillow(sample["jpg"], size).copy())

    data = Images(local=str(sets / "mds"), shuffle=True, batch_size=BATCH)
    loader = DataLoader(data, batch_size=BATCH, num_workers=workers)
    while True:
        yield from (len(images) for images in loader)


def litdata(sets: Path, size: int, workers: int) -> Iterator[int]:
    """A StreamingDataset with its shuffle."""
    import litdata as lit

    class Images(lit.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
            sample = super().__getitem__(index)
            return torch.from_numpy(by_pillow(sample["jpg"], size).copy())

    data = Images(str(sets / "litdata"), shuffle=True)
    loader = lit.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)
    while True:
        yield from (len(images) for images in loader)


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


PEERS: dict[str, Callable[[Path, int, int], Iterator[int]]] = {
    "webdataset, Pillow, float": webdataset(lambda one, size: as_float(by_pillow(one, size))),
    "webdataset, simplejpeg": webdataset(by_simplejpeg),
    "webdataset, scaled simplejpeg": webdataset(by_scaled_simplejpeg),
    **({"mosaicml": mosaicml} if _installed("streaming") else {}),
    **({"litdata": litdata} if _installed("litdata") else {}),
}
"""What is installed; those of `float` convert in their workers, as is usual."""
