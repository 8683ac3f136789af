"""Images of a set or of files, prepared for a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.config import DataConfig, ImageConfig, LabelConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.images import decode
from evaluation.samples import choose
from mezzotint.common.errors import UserError
from mezzotint.inference.images import from_bytes


@dataclass(frozen=True)
class InputImages:
    """Images with their captions and classes, where these are known."""

    images: Tensor
    """(n, 3, H, W) in [-1, 1]."""
    names: tuple[str, ...]
    """Keys or files, for messages."""
    captions: tuple[str, ...]
    source: str
    """For reports: the files, or the set with its fingerprint."""
    labels: tuple[int, ...] | None = None


def images_of_set(
    url: str,
    image: ImageConfig,
    *,
    limit: int,
    seed: int,
    split: str | None,
    label: LabelConfig | None = None,
) -> InputImages:
    """`limit` images of a set in an order fixed by the seed.

    `split` is `NAME` (its test part) or `NAME/train`, None for the whole set.

    Raises:
        UserError: the set, split or class cannot be read.
        UserError: the split does not exist, or holds no images.
    """
    select = () if split is None else (_selection(split),)
    data = DataConfig(url=url, select=select, image=image, label=label)
    dataset = open_dataset(data)
    batch = dataset.batch(choose(dataset.keys(), limit, seed))
    if not batch.captions:
        raise UserError(f"{url}: holds no images there; choose another --split")
    where = url if split is None else f"{url} ({split})"
    return InputImages(
        images=batch.images,
        names=batch.keys,
        captions=tuple(batch.captions),
        source=f"{where}, fingerprint {dataset.manifest.fingerprint[:12]}",
        labels=None if label is None else tuple(batch.labels.tolist()),
    )


def _selection(split: str) -> Selection:
    name, _, part = split.partition("/")
    if part not in ("", "train", "test") or not name:
        raise UserError(f"--split {split}: looks like NAME, NAME/test or NAME/train")
    return Selection(split=name, part="train" if part == "train" else "test")


def read_mask(path: Path, image: ImageConfig) -> Tensor:
    """A mask file as (1, H, W): 1 where it is white, 0 where it is black.

    It is prepared as the image itself is; of grey values the lighter half counts as white.

    Raises:
        UserError: no image there, or one in which nothing is white.
    """
    shown = images_of_files([path], image).images[0]
    mask = (shown.mean(dim=0, keepdim=True) > 0).float()
    if not bool(mask.any()):
        raise UserError(f"{path}: nothing in it is white, so nothing would be repainted")
    return mask


def images_of_files(paths: Sequence[Path], image: ImageConfig) -> InputImages:
    """Image files.

    Raises:
        UserError: a file is not there.
        UserError: it holds no image.
    """
    read = []
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such image")
        content = decode(path.read_bytes(), image, str(path))
        read.append(from_bytes(torch.from_numpy(content.copy())))
    return InputImages(
        images=torch.stack(read),
        names=tuple(map(str, paths)),
        captions=("",) * len(paths),
        source=", ".join(path.name for path in paths),
    )
