"""Classes of samples, from their attributes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import LabelConfig
from data_pipeline.manifest import Attribute, Manifest, SampleEntry
from data_pipeline.selection import check_values
from mezzotint.common.errors import UserError


def labels(
    manifest: Manifest, entries: Sequence[SampleEntry], config: LabelConfig
) -> NDArray[np.int64]:
    """The class of every one of `entries`, (n,).

    Raises:
        UserError: an attribute or value that the set does not know, or a sample without a class.
    """
    samples = list(manifest.samples())
    check_values(manifest.name, samples, "data.label", config.attribute, config.values or ())
    places = _places(config)
    found = np.empty(len(entries), dtype=np.int64)
    for number, entry in enumerate(entries):
        value = entry.attributes.get(config.attribute)
        if value not in places:
            raise UserError(
                f"data.label: sample '{entry.key}' has {config.attribute} {value!r}, which is no "
                f"class ({_range(config)}); name its value, or leave it out by data.select.where"
            )
        found[number] = places[value]
    return found


def _places(config: LabelConfig) -> Mapping[Attribute, int]:
    """The class of each value."""
    values = range(config.count) if config.values is None else config.values
    return {value: place for place, value in enumerate(values)}


def _range(config: LabelConfig) -> str:
    if config.values is None:
        return f"integers 0 to {config.count - 1}"
    return f"{len(config.values)} values from {config.values[0]!r} on"
