"""What packing reports: rejected pairs, what was left out, and what changed since the last time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from data_pipeline.manifest import Manifest
from data_pipeline.packing.source import Fault, shown_name

_EXAMPLES = 2
_NAMED = {"column not used": 50}
"""More names of rules where each name tells something else."""


class Rejection(BaseModel, frozen=True):
    """A rejected pair, as a line of `rejected.jsonl`."""

    name: str
    fault: Fault
    detail: str


class Count(BaseModel, frozen=True):
    """The number of some things, and the names of the first."""

    count: int
    examples: tuple[str, ...]


def counts(named: Mapping[str, Sequence[str]]) -> dict[str, Count]:
    """The counts of names by rule, without empty ones."""
    return {
        rule: Count(
            count=len(names),
            examples=tuple(map(shown_name, names[: _NAMED.get(rule, _EXAMPLES)])),
        )
        for rule, names in sorted(named.items())
        if names
    }


def by_rule(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by rule, from pairs of rule and name."""
    found: dict[str, list[str]] = {}
    for rule, name in pairs:
        found.setdefault(rule, []).append(name)
    return found


@dataclass(frozen=True)
class PartReport:
    """What a part of a new set has."""

    url: str
    shards: int
    """Of this part, or written before."""
    missing: int
    """Shards of other parts."""


@dataclass(frozen=True)
class PackReport:
    """A packed set, what was rejected, and what the source holds beside its samples."""

    url: str
    manifest: Manifest
    rejected: tuple[Rejection, ...]
    ignored: Mapping[str, Count]
    """By rule."""
    noticed: Mapping[str, Count] = field(default_factory=dict)
    """Samples that were used but may not be meant, by what was noticed."""
    overlap: Mapping[str, int] = field(default_factory=dict)
    """By split: the test samples that share an image or a caption with a training sample."""
    again: bool = field(default=False, compare=False)
    """Whether the set was there already."""
    changes: Mapping[str, Count] = field(default_factory=dict, compare=False)
    """What differs from the set that was there."""
