"""Derived sets: a set's images, encoded by a model, as another shard set.

Keys, captions, records, attributes and splits are those of the source; arrays replace the images.
The manifest holds the digest of the encoder, so that training can refuse another encoder's set.
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
"""From a batch of B samples to arrays (B, ...) by name."""

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
    """Encode all samples of a set into a shard set.

    Samples are not shuffled, and the shard size is that of the source. A finished set of the same
    source, settings and encoder is not written again.

    Args:
        dataset: The source, opened with the settings that `encode` needs.
        out_url: Directory of the new set, local or any fsspec URL.
        encode: The encoder; called with `batch` samples at a time.
        fields: Names of its arrays; `codes` is stored as the member `KEY.codes.npy`.
        encoder: Digest of the model.
        batch: Samples per call.
        progress: Called with (samples done, total).

    Raises:
        UserError: The source cannot be read, the target cannot be written, or `encode` returns
            other arrays than `fields`.
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
                f"the encoder returned {shapes} for {len(indices)} samples instead of the arrays "
                f"{list(fields)}"
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
