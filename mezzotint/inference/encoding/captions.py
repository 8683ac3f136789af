"""Text features of a set's captions, derived with a frozen text encoder."""

import io
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.derive import finished_set, write_derived
from data_pipeline.manifest import Manifest
from data_pipeline.text.t5_tokenizer import tokenizer_of
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.text_features import (
    EMPTY_FEATURES,
    TEXT_FEATURES,
    FeatureType,
    TextFeatureRecord,
)
from mezzotint.inference.process_group import ProcessGroup, Progress
from mezzotint.inference.runtime import Runtime
from models import frozen_text
from models.finite import named_samples, require_finite
from models.text_source import TextSource, identity

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def encode_captions(
    data: DataConfig,
    source: TextSource,
    out: str,
    *,
    dtype: FeatureType = "fp32",
    batch: int = 64,
    device: str | torch.device = "cpu",
    group: ProcessGroup | None = None,
    progress: Progress | None = None,
) -> Manifest | None:
    """Write the features of every caption of a set, of `batch` samples at a time, as another set.

    A sample's array `text_features` (lines, L, C) has those of each line of its KEY.txt; those of
    an empty caption are kept once. They are computed in fp32. A finished set of the same source,
    encoder and type is left as it is. The main process writes; None on the others.

    Raises:
        UserError: there is no such encoder, or not the one of the source's digest.
        NonFiniteError: a sample's features are not finite in `dtype`; nothing is left of the set.
    """
    dataset = open_dataset(data.model_copy(update={"image": None, "arrays": (), "hint": None}))
    digest = identity(frozen_text.describe(source).source)
    finished = _finished(dataset, out, digest, dtype)
    if finished is not None:
        return finished
    runtime = Runtime.of(device, "fp32", group)
    reader = frozen_text.load(source, tokenizer_of).to(runtime.device)

    def compute(rows: range) -> Mapping[str, Tensor]:
        lines = [(row, line) for row in rows for line in lines_of(dataset, row)]
        names = [f"{data.url}: sample '{dataset.entry(row).key}'" for row, _ in lines]
        with runtime.inference(), named_samples(names):
            found = reader([line for _, line in lines]).to(DTYPES[dtype]).cpu()
            require_finite(f"array '{TEXT_FEATURES}' is", found)
        return {TEXT_FEATURES: found}

    blocks = runtime.group.map_blocks(compute, len(dataset), batch, progress)
    if not runtime.group.is_main:
        for _ in blocks:
            pass
        return None
    with runtime.inference():
        empty = reader([""])[0].to(DTYPES[dtype]).cpu()
    features = (block[TEXT_FEATURES] for block in blocks)
    return _write(dataset, out, features, empty, digest, dtype)


def _finished(dataset: Dataset, out: str, digest: str, dtype: FeatureType) -> Manifest | None:
    """The manifest of a finished set of this encoder and type."""
    found = finished_set(dataset, out, None, fields=(TEXT_FEATURES,))
    if found is None or found.text_features is None:
        return None
    record = found.text_features
    return found if (record.encoder, record.dtype) == (digest, dtype) else None


def _write(
    dataset: Dataset,
    out: str,
    blocks: Iterator[Tensor],
    empty: Tensor,
    digest: str,
    dtype: FeatureType,
) -> Manifest:
    """Write the features of all samples, and those of an empty caption (L, C) after them."""
    content = npy(empty)

    def members() -> Iterator[Mapping[str, bytes]]:
        yield from _members(dataset, blocks)
        storage.write_bytes(storage.join(out, EMPTY_FEATURES), content)

    return write_derived(
        dataset,
        out,
        members(),
        name=f"{dataset.manifest.name}-{TEXT_FEATURES}",
        fields={f"{TEXT_FEATURES}.npy": "features of each caption by a frozen text encoder"},
        text_features=TextFeatureRecord(
            encoder=digest,
            length=empty.shape[0],
            width=empty.shape[1],
            dtype=dtype,
            empty_sha256=sha256(content),
        ),
    )


def _members(dataset: Dataset, blocks: Iterator[Tensor]) -> Iterator[Mapping[str, bytes]]:
    """The member of every sample, from the features of the captions of several samples."""
    row = 0
    for block in blocks:
        start = 0
        while start < len(block):
            count = len(lines_of(dataset, row))
            yield {f"{TEXT_FEATURES}.npy": npy(block[start : start + count])}
            start, row = start + count, row + 1


def lines_of(dataset: Dataset, row: int) -> tuple[str, ...]:
    """The captions of a sample; one that has none has an empty one."""
    return dataset.captions_of(row) or ("",)


def npy(values: Tensor) -> bytes:
    """The content of a .npy file."""
    content = io.BytesIO()
    np.save(content, values.numpy(), allow_pickle=False)
    return content.getvalue()
