"""Derived sets: a set's images, encoded by a model or hints of a detector, as another shard set.

Keys, captions, records, attributes and splits are those of the source; arrays replace the images.
The manifest holds the digest of the encoder, so that training can refuse another encoder's set.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.manifest import MANIFEST_NAME, Manifest, Measured
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.sets.counts import counted
from data_pipeline.sets.journal import ShardJournal
from data_pipeline.sets.stored_set import ShardIndexes, StoredSet, read_set
from data_pipeline.sets.write import write_changed
from data_pipeline.shards import ShardReader, check_sizes
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.hint import Detector
from mezzotint.common.latent_scaling import (
    DEVIATIONS,
    LATENTS,
    LatentMoments,
    LatentScaling,
    merged,
)
from mezzotint.common.mirrored import mirrored
from mezzotint.common.preprocessing import Preprocessing
from mezzotint.common.text_features import TextFeatureRecord

Arrays = Mapping[str, NDArray[np.generic]]
"""Arrays (B, ...) of B samples by name."""

_COPIED = ("txt", "json")
_DERIVED_FROM = "derived from"
_WITH_IMAGE = "derived with image"


def derive(
    dataset: Dataset,
    out_url: str,
    blocks: Iterable[Arrays],
    *,
    fields: Sequence[str],
    encoder: str,
    journal: ShardJournal | None = None,
) -> Manifest:
    """Write the encoded samples of a set as a shard set, with the shard size of the source.

    It replaces a derived set that is there, with the shards of that one. Shards that are finished
    in the `journal`, that of `derive_journal`, are kept.

    `blocks` are the arrays of all samples in order, some samples at a time. `fields` are their
    names: `codes` is stored as the member `KEY.codes.npy`. `encoder` is the digest of the model.

    Raises:
        UserError: The source cannot be read, the target cannot be written, or a block has other
            arrays than `fields`.
    """
    arrays = {f"{name}.npy": f"array '{name}' made by the encoder" for name in fields}
    measure = _Measure()
    return write_derived(
        dataset,
        out_url,
        _array_members(measure.watch(blocks), fields),
        name=f"{dataset.manifest.name}-{'-'.join(fields)}",
        fields=arrays,
        encoder=encoder,
        measured=lambda: Measured(latents=measure.scaling(dataset.config.url)),
        journal=journal,
    )


def derive_journal(
    dataset: Dataset, out_url: str, *, fields: Sequence[str], encoder: str
) -> ShardJournal:
    """The journal of a set that `derive` writes, also if another call was interrupted."""
    plan = {"fields": list(fields), "encoder": encoder, "provenance": _provenance(dataset)}
    return ShardJournal(out_url, sha256(json.dumps(plan, sort_keys=True)))


def finished_blocks(
    journal: ShardJournal, dataset: Dataset, out_url: str, fields: Sequence[str], size: int
) -> tuple[int, Iterator[Arrays]]:
    """The samples of the shards that are finished, and their arrays, `size` at a time."""
    shards = journal.finished
    if not shards:
        return 0, iter(())
    counts = counted([index for _, index in shards], {})
    manifest = counts.manifest(dataset.manifest, [entry for entry, _ in shards])
    stored = StoredSet(out_url, manifest, ShardIndexes(out_url, manifest.shards))
    written = Dataset(
        DataConfig(url=out_url, arrays=tuple(fields)), stored, dataset.reader.cache, None
    )

    def blocks() -> Iterator[Arrays]:
        for first in range(0, len(written), size):
            arrays = [
                written.sample(row).arrays for row in range(first, min(first + size, len(written)))
            ]
            yield {name: np.stack([one[name] for one in arrays]) for name in fields}

    return len(written), blocks()


def write_derived(
    dataset: Dataset,
    out_url: str,
    members: Iterable[Mapping[str, bytes]],
    *,
    name: str,
    fields: Mapping[str, str],
    encoder: str | None = None,
    detector: Detector | None = None,
    text_features: TextFeatureRecord | None = None,
    measured: Callable[[], Measured] = Measured,
    journal: ShardJournal | None = None,
) -> Manifest:
    """Write the samples of a set with new members, those of each sample in order, as a shard set.

    `fields` describe the new members; see `derive`. `measured` is called when all are written.
    """
    source = dataset.manifest
    before = _derived_set(out_url)
    written = write_shards(
        _samples(dataset, members),
        out_url,
        name=name,
        licence=source.licence,
        provenance=_provenance(dataset),
        shard_size=int(source.shard_sizes.max()),
        fields={
            **{name: text for name, text in source.fields.items() if name in _COPIED},
            **fields,
        },
        encoder=encoder,
        detector=detector,
        text_features=text_features,
        preprocessing=_preprocessing(dataset),
        splits={name: split.description for name, split in source.splits.items()},
        measured=measured,
        journal=journal,
    )
    names = set(written.shard_columns.name)
    for name in before.manifest.shard_columns.name if before is not None else ():
        if name not in names:
            storage.remove(storage.join(out_url, name))
    return written


class _Measure:
    """Statistics of the latents in the blocks of a set, measured as they pass."""

    def __init__(self) -> None:
        self._moments = {name: LatentMoments() for name in (LATENTS, mirrored(LATENTS))}

    def watch(self, blocks: Iterable[Arrays]) -> Iterator[Arrays]:
        """The blocks, unchanged."""
        for block in blocks:
            for name, spread in zip(self._moments, (DEVIATIONS, mirrored(DEVIATIONS)), strict=True):
                if name in block:
                    before = self._moments[name]
                    self._moments[name] = before.with_samples(block[name], block.get(spread))
            yield block

    def scaling(self, name: str) -> LatentScaling | None:
        """The statistics, None where there were no latents.

        Raises:
            UserError: all latents of the set called `name` are equal.
        """
        moments = merged(self._moments.values())
        return moments.scaling(name) if moments.samples else None


def measured(url: str, manifest: Manifest) -> Manifest:
    """The manifest of a derived set with the statistics of its latents.

    Where it has none, written by an earlier version, all its latents are read and it is written.

    Raises:
        UserError: a shard cannot be read, or its latents are not finite or all equal.
    """
    if manifest.latents is not None or f"{LATENTS}.npy" not in manifest.fields:
        return manifest
    names = tuple(name for name in (LATENTS, DEVIATIONS) if f"{name}.npy" in manifest.fields)
    dataset = open_dataset(DataConfig(url=url, arrays=names))
    measure = _Measure()
    for _ in measure.watch(_arrays_of(dataset, index) for index in range(len(dataset))):
        pass
    return write_changed(url, manifest, {"latents": measure.scaling(url)})


def _arrays_of(dataset: Dataset, index: int) -> Arrays:
    """The arrays of one sample as a block."""
    return {name: array[None] for name, array in dataset.sample(index).arrays.items()}


def _derived_set(url: str) -> StoredSet | None:
    """The derived set at `url`, if there is any set.

    Raises:
        UserError: There is a set that was not derived from another.
    """
    if not storage.exists(storage.join(url, MANIFEST_NAME)):
        return None
    stored = read_set(url)
    if _DERIVED_FROM not in stored.manifest.provenance:
        raise UserError(
            f"{url}: holds the set '{stored.manifest.name}', which is no derived set; choose "
            "another directory, or delete it"
        )
    return stored


def _preprocessing(dataset: Dataset) -> Preprocessing | None:
    image = dataset.config.image
    return None if image is None else image.preprocessing


def encoded_preprocessing(manifest: Manifest) -> Preprocessing | None:
    """Of the images that a derived set was encoded from, also where an earlier version wrote it."""
    if manifest.preprocessing is not None:
        return manifest.preprocessing
    try:
        return ImageConfig.model_validate_json(manifest.provenance[_WITH_IMAGE]).preprocessing
    except (KeyError, ValidationError):
        return None


def _provenance(dataset: Dataset) -> dict[str, str]:
    image = dataset.config.image
    return {
        **dataset.manifest.provenance,
        _DERIVED_FROM: dataset.manifest.name,
        "derived from sha256": dataset.fingerprint,
        _WITH_IMAGE: image.model_dump_json() if image else "none",
    }


def finished_set(
    dataset: Dataset,
    url: str,
    encoder: str | None,
    detector: Detector | None = None,
    *,
    fields: Sequence[str] = (),
) -> Manifest | None:
    """The manifest of a finished set of the same source, settings and encoder or detector.

    `fields` are arrays that it must hold.

    Raises:
        UserError: there is a set that is no derived one, or one whose images were prepared
            otherwise, and all else is the same; a shard of the source or of the set was changed.
    """
    stored, provenance = _derived_set(url), _provenance(dataset)
    if stored is None:
        return None
    manifest = stored.manifest
    same = manifest.provenance | {_WITH_IMAGE: provenance[_WITH_IMAGE]} == provenance
    held = {f"{name}.npy" for name in fields} <= manifest.fields.keys()
    if (manifest.encoder, manifest.detector) != (encoder, detector) or not same or not held:
        return None
    before, now = encoded_preprocessing(manifest), _preprocessing(dataset)
    if before != now:
        maker = "encoder" if encoder else "detector"
        raise UserError(
            f"{url}: holds a set of this {maker} with images prepared as {_shown(before)}, not as "
            f"{_shown(now)}; choose another directory or delete it"
        )
    check_sizes(stored)
    dataset.check_local()
    reader = ShardReader(stored, dataset.reader.cache)
    try:
        reader.check_local(range(len(manifest.shards)))
    finally:
        reader.close()
    return manifest


def _shown(image: Preprocessing | None) -> str:
    if image is None:
        return "unknown"
    flip = ", mirrored too" if image.flip else ""
    return f"{image.size} pixels, {image.fit}, {image.filter}{flip}"


def _array_members(
    blocks: Iterable[Arrays], fields: Sequence[str]
) -> Iterator[Mapping[str, bytes]]:
    for arrays in blocks:
        counts = {len(array) for array in arrays.values()}
        if set(arrays) != set(fields) or len(counts) != 1:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise UserError(f"the encoder returned {shapes} instead of the arrays {list(fields)}")
        for row in range(counts.pop()):
            yield {f"{name}.npy": _npy(array[row]) for name, array in arrays.items()}


def _samples(dataset: Dataset, members: Iterable[Mapping[str, bytes]]) -> Iterator[RawSample]:
    index = 0
    for index, new in enumerate(members, 1):
        entry = dataset.entry(index - 1)
        copied = {
            name: dataset.member(index - 1, name) for name in _COPIED if name in entry.members
        }
        yield RawSample(entry.key, {**copied, **new}, entry.attributes, dataset.parts(index - 1))
    if index != len(dataset):
        raise UserError(f"the encoder returned {index} of {len(dataset)} samples")


def _npy(array: NDArray[np.generic]) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
