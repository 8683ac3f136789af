"""Derived sets: what a model makes of a set's images, as a shard set of its own.

Same keys, captions, records, attributes and splits as the source; arrays in the images' place;
and the digest of the model that made them, by which training refuses those of another.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batch import Batch
from data_pipeline.dataset import Dataset
from data_pipeline.manifest import MANIFEST_NAME, Manifest, read_manifest
from data_pipeline.packing.shard_writer import Progress, RawSample, write_shards
from data_pipeline.shards import check_sizes
from mezzotint.common import storage
from mezzotint.common.errors import UserError

Encode = Callable[[Batch], Mapping[str, NDArray[np.generic]]]
"""A batch of B samples to named arrays of (B, ...)."""

_COPIED = ("txt", "json")


def derive(
    dataset: Dataset,
    out_url: str,
    encode: Encode,
    *,
    fields: Sequence[str],
    encoder: str,
    batch: int,
    progress: Progress | None = None,
) -> Manifest:
    """Write what ``encode`` makes of every sample of ``dataset`` as a shard set.

    The samples come in order, without a shuffle; the set keeps the source's shard size. A
    finished set of the same source, settings and encoder is left as it is.

    Args:
        dataset: The source, opened with what ``encode`` needs of it.
        out_url: Directory of the new set, local or any fsspec URL.
        encode: The model; called with ``batch`` samples at a time.
        fields: Names of its arrays; ``codes`` becomes the member ``KEY.codes.npy``.
        encoder: Digest of the model.
        batch: Samples per call.
        progress: Called with (samples done, of all).

    Raises:
        UserError: The source cannot be read, the target not written, or ``encode`` gives other
            arrays than promised.
    """
    provenance = _provenance(dataset)
    finished = _finished(out_url, provenance, encoder)
    if finished is not None:
        return finished
    source = dataset.manifest
    return write_shards(
        _encoded(dataset, encode, fields, batch, progress),
        out_url,
        name=f"{source.name}-{'-'.join(fields)}",
        licence=source.licence,
        provenance=provenance,
        shard_size=max(len(shard.samples) for shard in source.shards),
        fields={
            **{name: text for name, text in source.fields.items() if name in _COPIED},
            **{f"{name}.npy": f"array '{name}' made by the encoder" for name in fields},
        },
        encoder=encoder,
        splits=source.splits_of(set(dataset.keys())),
    )


def _provenance(dataset: Dataset) -> dict[str, str]:
    image = dataset.config.image
    return {
        **dataset.manifest.provenance,
        "derived from": dataset.manifest.name,
        "derived from sha256": dataset.fingerprint,
        "derived with image": image.model_dump_json() if image else "none",
    }


def _finished(url: str, provenance: Mapping[str, str], encoder: str) -> Manifest | None:
    if not storage.exists(storage.join(url, MANIFEST_NAME)):
        return None
    manifest = read_manifest(url)
    if manifest.provenance != provenance or manifest.encoder != encoder:
        return None
    check_sizes(url, manifest)
    return manifest


def _encoded(
    dataset: Dataset,
    encode: Encode,
    fields: Sequence[str],
    batch: int,
    progress: Progress | None,
) -> Iterator[RawSample]:
    for start in range(0, len(dataset), batch):
        indices = range(start, min(start + batch, len(dataset)))
        arrays = encode(dataset.batch(indices))
        if set(arrays) != set(fields) or any(len(a) != len(indices) for a in arrays.values()):
            shapes = {name: array.shape for name, array in arrays.items()}
            raise UserError(
                f"the encoder gave {shapes} for {len(indices)} samples where arrays "
                f"{list(fields)} were promised"
            )
        for row, index in enumerate(indices):
            entry = dataset.entry(index)
            members = {
                name: dataset.member(index, name) for name in _COPIED if name in entry.members
            }
            for name, array in arrays.items():
                members[f"{name}.npy"] = _npy(array[row])
            yield RawSample(entry.key, members, entry.attributes)
        if progress is not None:
            progress(indices.stop, len(dataset))


def _npy(array: NDArray[np.generic]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
