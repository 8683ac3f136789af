"""Class labels from sample attributes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import LabelConfig
from data_pipeline.manifest import Attribute, Manifest, SampleEntry
from data_pipeline.selection import check_values
from mezzotint.common.errors import UserError


def labels(
    manifest: Manifest, entries: Sequence[SampleEntry], config: LabelConfig
) -> NDArray[np.int64]:
    """The classes of n samples, (n,).

    Raises:
        UserError: No sample has the attribute or one of the values, or a sample has no class.
    """
    samples = list(manifest.samples())
    check_values(manifest.name, samples, "data.label", config.attribute, config.values or ())
    values = range(config.count) if config.values is None else config.values
    classes: dict[Attribute, int] = {value: number for number, value in enumerate(values)}
    found = np.empty(len(entries), dtype=np.int64)
    for index, entry in enumerate(entries):
        value = entry.attributes.get(config.attribute)
        if value not in classes:
            raise UserError(
                f"data.label: sample '{entry.key}' has {config.attribute} {value!r}, which is no "
                f"class ({_range(config)}); add its value, or exclude it by data.select.where"
            )
        found[index] = classes[value]
    return found


def _range(config: LabelConfig) -> str:
    if config.values is None:
        return f"integers 0 to {config.count - 1}"
    return f"{len(config.values)} values starting with {config.values[0]!r}"
