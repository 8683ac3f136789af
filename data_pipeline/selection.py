"""Selecting samples of a set by split and attributes."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import CaptionChoice, Selection
from data_pipeline.manifest import Manifest
from data_pipeline.sets.bounded_cache import BoundedCache
from data_pipeline.sets.shard_index import ShardIndex
from data_pipeline.sets.stored_set import StoredSet
from data_pipeline.sets.survey import Survey
from mezzotint.common.errors import UserError

_LISTED = 12
_ROW_BYTES = 64 << 20


class Selected:
    """The selected samples of a set, shard by shard, numbered in its order.

    Picklable; see `ShardIndexes`.
    """

    def __init__(
        self, stored: StoredSet, selections: Sequence[Selection], sizes: NDArray[np.int64]
    ) -> None:
        self._indexes = stored.indexes
        self._selections = tuple(selections)
        self.sizes = sizes
        """(S,): selected samples of each shard."""
        self.ends = np.cumsum(sizes)
        """(S,): one more than the number of the last one of each."""
        self._starts = stored.manifest.shard_starts
        self._rows: BoundedCache[NDArray[np.int64]] = BoundedCache(_ROW_BYTES, _row_bytes)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def described(self) -> str:
        """The selections as text."""
        return described(self._selections)

    def numbers(self) -> Iterator[NDArray[np.int64]]:
        """Of every shard, the numbers that its selected samples have in the whole set."""
        for shard in self.shards:
            yield self.rows(shard) + self._starts[shard]

    @property
    def shards(self) -> list[int]:
        """Those that hold a selected sample."""
        return np.flatnonzero(self.sizes).tolist()

    def locate(self, number: int) -> tuple[int, int]:
        """The shard of a selected sample, and its row there."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        place = number - int(self.ends[shard] - self.sizes[shard])
        return shard, int(self.rows(shard)[place]) if self._selections else place

    def rows(self, shard: int) -> NDArray[np.int64]:
        """The rows of a shard's selected samples, ascending."""
        if not self._selections:
            return np.arange(self.sizes[shard])
        return self._rows.get(shard, self._rows_of)

    def _rows_of(self, shard: int) -> NDArray[np.int64]:
        return np.flatnonzero(_mask(self._indexes.of(shard), self._selections))


def _row_bytes(rows: NDArray[np.int64]) -> int:
    return rows.nbytes


def select(survey: Survey, selections: Sequence[Selection]) -> Selected:
    """The union of the selections (none: all samples).

    How many samples of each shard are selected is in the manifest, or is counted in the indexes.

    Raises:
        UserError: An unknown split, attribute or value, or an empty selection.
    """
    stored = survey.stored
    for selection in selections:
        _check(stored.manifest, selection)
    chosen = Selected(stored, selections, _sizes(survey, selections))
    if not len(chosen):
        raise UserError(f"data.select: selects no sample of '{stored.manifest.name}'; widen it")
    return chosen


def _sizes(survey: Survey, selections: Sequence[Selection]) -> NDArray[np.int64]:
    """The selected samples of every shard, (S,)."""
    manifest, indexes = survey.stored.manifest, survey.stored.indexes
    if not selections:
        return manifest.shard_sizes
    if len(selections) == 1 and not selections[0].where and not selections[0].within:
        return manifest.splits[selections[0].split].of(selections[0].part)
    return survey.of(
        range(len(manifest.shards)),
        f"selected by {described(selections)}",
        lambda shard: int(_mask(indexes.of(shard), selections).sum()),
    )


def _mask(index: ShardIndex, selections: Sequence[Selection]) -> NDArray[np.bool_]:
    """Which samples of a shard are selected, (n,)."""
    found = np.zeros(len(index), dtype=np.bool_)
    for selection in selections:
        chosen = index.in_part(selection.split, selection.part)
        for name, values in selection.where.items():
            chosen = chosen & index.among(name, values)
        for name, part in selection.within.items():
            chosen = chosen & index.in_part(name, part)
        found |= chosen
    return found


def described(selections: Sequence[Selection]) -> str:
    """Selections as text; equal ones are the same text."""
    trees = [one.model_dump(mode="json", exclude_defaults=True) for one in selections]
    return json.dumps(trees, sort_keys=True)


def _check(manifest: Manifest, selection: Selection) -> None:
    for split in (selection.split, *selection.within):
        if split not in manifest.splits:
            raise UserError(
                f"data.select: '{manifest.name}' has no split '{split}'; it has "
                f"{_listed(manifest.splits)}"
            )
    for name, values in selection.where.items():
        check_values(manifest, "data.select.where", name, values)
    if not manifest.splits[selection.split].of(selection.part).any():
        raise UserError(
            f"data.select: part '{selection.part}' of split '{selection.split}' of "
            f"'{manifest.name}' is empty; choose the other part"
        )


def check_values(manifest: Manifest, key: str, name: str, values: Sequence[str | int]) -> None:
    """Check that some sample has an attribute, and each of its values; `key` names the setting.

    Values of an attribute that has more of them than a manifest counts are not checked.

    Raises:
        UserError: None has; the message lists what there is.
    """
    counts = manifest.attributes.get(name)
    if counts is None:
        raise UserError(
            f"{key}: no sample of '{manifest.name}' has an attribute '{name}'; there is "
            f"{_listed(manifest.attributes)}"
        )
    known = None if counts.values is None else [value for value, _ in counts.values]
    for value in values:
        if known is not None and value not in known:
            raise UserError(
                f"{key}.{name}: no sample of '{manifest.name}' has '{value}'; there is "
                f"{_listed(map(str, known))}"
            )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(f"'{name}'" for name in ordered[:_LISTED]) + more if ordered else "none"


def fingerprint(
    manifests: Sequence[Manifest],
    selected: Selected,
    block: int,
    lanes: int,
    captions: CaptionChoice,
) -> str:
    """Digest of sets, of the selection and of what else a stream's order depends on.

    `manifests` are that of the set, then those of sets joined to it.
    """
    choice = "" if captions == "random" else f"{captions} "  # as before there was a choice
    if lanes > 1:
        choice += f"{lanes} lanes "
    sets = " ".join(manifest.fingerprint for manifest in manifests)
    digest = hashlib.sha256(f"{sets} {block} {choice}".encode())
    if manifests[0].format_1_fingerprint is None:
        digest.update(selected.described.encode())
    else:  # runs that were started when the set was of format 1 refer to every number
        for numbers in selected.numbers():
            digest.update(numbers.astype("<i8").tobytes())
    return digest.hexdigest()
