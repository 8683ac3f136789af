"""Counting what the shards of a set hold, and the manifest that follows from it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipeline.manifest import (
    LISTED_VALUES,
    AttributeCounts,
    Manifest,
    SetRecord,
    ShardColumns,
    ShardEntry,
    SplitCounts,
)
from data_pipeline.sets.shard_index import ShardIndex


class SetCounts:
    """Counts of what the shards of a set hold, added up shard by shard.

    `splits` are the descriptions of the set's splits.
    """

    def __init__(self, splits: Mapping[str, str]) -> None:
        self._descriptions = splits
        self._members: Counter[str] = Counter()
        self._having: Counter[str] = Counter()
        self._values: dict[str, Counter[str | int] | None] = {}
        self._parts: dict[str, list[tuple[int, int]]] = {name: [] for name in splits}

    def add(self, index: ShardIndex) -> None:
        for extension in index.members:
            self._members[extension] += int(index.has(extension).sum())
        for name in index.attributes:
            counts = index.counts(name)
            self._having[name] += sum(counts.values())
            known = self._values.setdefault(name, Counter())
            if known is not None:
                known.update(counts)
                if len(known) > LISTED_VALUES:
                    self._values[name] = None
        for name, parts in self._parts.items():
            train, test = index.in_part(name, "train"), index.in_part(name, "test")
            parts.append((int(train.sum()), int(test.sum())))

    @property
    def members(self) -> dict[str, int]:
        return dict(self._members)

    @property
    def attributes(self) -> dict[str, AttributeCounts]:
        return {
            name: AttributeCounts(
                samples=self._having[name],
                values=None if values is None else tuple(values.items()),
            )
            for name, values in self._values.items()
        }

    @property
    def splits(self) -> dict[str, SplitCounts]:
        return {
            name: SplitCounts(
                description=self._descriptions[name],
                train=tuple(train for train, _ in parts),
                test=tuple(test for _, test in parts),
            )
            for name, parts in self._parts.items()
        }

    def manifest(
        self, record: SetRecord, shards: Sequence[ShardEntry], location: str | None = None
    ) -> Manifest:
        """The manifest of a set with these shards, which were all added."""
        tree: dict[str, Any] = {
            **record.record_fields(),
            "location": location,
            "members": self.members,
            "attributes": self.attributes,
            "splits": self.splits,
            "shard_columns": ShardColumns.of(shards),
        }
        return Manifest.model_validate(tree)


def counted(indexes: Iterable[ShardIndex], splits: Mapping[str, str]) -> SetCounts:
    """The counts of these shards."""
    counts = SetCounts(splits)
    for index in indexes:
        counts.add(index)
    return counts
