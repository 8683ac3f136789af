"""Pictures from a set or from files, at a model's size, for commands that look at models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from data_pipeline.config import DataConfig, ImageConfig, LabelConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.images import decode
from evaluation.samples import choose
from mezzotint.common.errors import UserError
from mezzotint.inference.images import from_bytes

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Pictures:
    """Pictures with what they show, where that is known."""

    images: Tensor
    """(n, 3, H, W) in [-1, 1]."""
    captions: tuple[str, ...]
    source: str
    """For reports: the files, or the set with its fingerprint."""
    labels: tuple[int, ...] | None = None


def pictures_of_set(
    url: str,
    size: int,
    *,
    limit: int,
    seed: int,
    split: str | None,
    label: LabelConfig | None = None,
) -> Pictures:
    """`limit` pictures of a set in an order fixed by the seed.

    `split` is `NAME` (its test part) or `NAME/train`, None for the whole set.

    Raises:
        UserError: the set, split or class cannot be read.
        UserError: the split is none, or holds no pictures.
    """
    select = () if split is None else (_selection(split),)
    data = DataConfig(url=url, select=select, image=ImageConfig(size=size), label=label)
    dataset = open_dataset(data)
    batch = dataset.batch(choose(dataset.keys(), limit, seed))
    if not batch.captions:
        raise UserError(f"{url}: holds no pictures there; choose another --split")
    where = url if split is None else f"{url} ({split})"
    return Pictures(
        images=batch.images,
        captions=tuple(batch.captions),
        source=f"{where}, fingerprint {dataset.manifest.fingerprint[:12]}",
        labels=None if label is None else tuple(batch.labels.tolist()),
    )


def _selection(split: str) -> Selection:
    name, _, part = split.partition("/")
    if part not in ("", "train", "test") or not name:
        raise UserError(f"--split {split}: looks like NAME, NAME/test or NAME/train")
    return Selection(split=name, part="train" if part == "train" else "test")


def pictures_of_files(paths: Sequence[Path], size: int) -> Pictures:
    """Picture files, padded to a white square.

    Raises:
        UserError: a file is not there.
        UserError: it holds no picture.
    """
    read = []
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such picture")
        content = decode(path.read_bytes(), ImageConfig(size=size), str(path))
        read.append(from_bytes(torch.from_numpy(content.copy())))
    names = ", ".join(path.name for path in paths)
    return Pictures(torch.stack(read), tuple("" for _ in paths), names)
