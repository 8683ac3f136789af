"""Selecting samples of a set by split and attributes."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import CaptionChoice, Selection
from data_pipeline.manifest import Attribute, Manifest, SampleEntry
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError

_LISTED = 12


def select(manifest: Manifest, selections: Sequence[Selection]) -> NDArray[np.int64]:
    """Indices in the manifest, ascending, of the union of the selections (none: all samples).

    Raises:
        UserError: An unknown split, attribute or value, or an empty selection.
    """
    samples = list(manifest.samples())
    indices = np.arange(len(samples))
    if selections:
        keys = set().union(*(_keys(manifest, samples, one) for one in selections))
        indices = np.flatnonzero([sample.key in keys for sample in samples])
    if not indices.size:
        raise UserError(f"data.select: selects no sample of '{manifest.name}'; widen it")
    return indices


def _keys(manifest: Manifest, samples: list[SampleEntry], selection: Selection) -> set[str]:
    if selection.split not in manifest.splits:
        raise UserError(
            f"data.select: '{manifest.name}' has no split '{selection.split}'; it has "
            f"{_listed(manifest.splits)}"
        )
    for name, values in selection.where.items():
        check_values(manifest.name, samples, "data.select.where", name, values)
    split = manifest.splits[selection.split]
    keys = set(split.train if selection.part == "train" else split.test)
    if not keys:
        raise UserError(
            f"data.select: part '{selection.part}' of split '{selection.split}' of "
            f"'{manifest.name}' is empty; choose the other part"
        )
    return {
        sample.key
        for sample in samples
        if sample.key in keys
        and all(sample.attributes.get(name) in values for name, values in selection.where.items())
    }


def check_values(
    set_name: str, samples: list[SampleEntry], key: str, name: str, values: Sequence[str | int]
) -> None:
    """Check that some sample has an attribute, and each of its values; `key` names the setting.

    Raises:
        UserError: None has; the message lists what there is.
    """
    known: set[Attribute] = {
        sample.attributes[name] for sample in samples if name in sample.attributes
    }
    if not known:
        names = {attribute for sample in samples for attribute in sample.attributes}
        raise UserError(
            f"{key}: no sample of '{set_name}' has an attribute '{name}'; there is {_listed(names)}"
        )
    for value in values:
        if value not in known:
            raise UserError(
                f"{key}.{name}: no sample of '{set_name}' has '{value}'; there is "
                f"{_listed(str(one) for one in known if one is not None)}"
            )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else ""
    return ", ".join(f"'{name}'" for name in ordered[:_LISTED]) + more if ordered else "none"


def fingerprint(
    manifests: Sequence[Manifest],
    positions: NDArray[np.int64],
    block: int,
    lanes: int,
    captions: CaptionChoice,
) -> str:
    """Digest of sets, of the selected samples and of what else a stream's order depends on."""
    chosen = positions.astype("<i8").tobytes()
    choice = "" if captions == "random" else f"{captions} "  # as before there was a choice
    if lanes > 1:
        choice += f"{lanes} lanes "
    sets = " ".join(manifest.fingerprint for manifest in manifests)
    return sha256(f"{sets} {block} {choice}".encode() + chosen)
