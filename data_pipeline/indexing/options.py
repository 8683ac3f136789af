"""Options and report of `mezzotint data index`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.manifest import Manifest
from data_pipeline.sets.split_rule import SplitRule


@dataclass(frozen=True)
class IndexOptions:
    """What to write into the manifest, and what to check. None: as in the manifest before."""

    name: str | None = None
    licence: str | None = None
    images: bool = True
    """Decode every image, and exclude those that are damaged."""
    workers: int = 8
    """Samples of a tar that are read at once."""
    processes: int | None = None
    """Tars that are read at once; None: one for every core, and at least 8 tars for each."""
    image_sizes: bool = False
    """Keep width and height of the upright images as attributes."""
    split: SplitRule | None = None
    """Makes the split `random`; samples that it has already stay where they are."""
    out: str | None = None
    """Directory for manifest and indexes; None: that of the tars."""


@dataclass(frozen=True)
class IndexReport:
    """The manifest, and an account of everything else that was found."""

    manifest: Manifest
    excluded: tuple[str, ...]
    """Samples that are not part of the set, with the reason."""
    ignored: Mapping[str, Sequence[str]]
    """Files and members that are no samples, by rule."""
    changes: tuple[str, ...]
    """Differences from the manifest before; none if there was none."""
    notes: tuple[str, ...] = ()
    """What else was noticed."""
