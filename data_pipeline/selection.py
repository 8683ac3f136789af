"""Which samples of a set a recipe asked for."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import Selection
from data_pipeline.manifest import Attribute, Manifest, SampleEntry
from mezzotint.common.errors import UserError

_SHOWN = 12


def select(manifest: Manifest, selections: Sequence[Selection]) -> NDArray[np.int64]:
    """Positions in the manifest, ascending, of the union of ``selections`` (none: all).

    Raises:
        UserError: An unknown split, attribute or value, or nothing is left.
    """
    samples = list(manifest.samples())
    if selections:
        chosen = set().union(*(_keys(manifest, samples, one) for one in selections))
        positions = [number for number, sample in enumerate(samples) if sample.key in chosen]
    else:
        positions = list(range(len(samples)))
    if not positions:
        raise UserError(f"data.select: no sample of '{manifest.name}' is left; widen it")
    return np.asarray(positions, dtype=np.int64)


def _keys(manifest: Manifest, samples: list[SampleEntry], selection: Selection) -> set[str]:
    if selection.split not in manifest.splits:
        raise UserError(
            f"data.select: '{manifest.name}' has no split '{selection.split}'; it has "
            f"{_listed(manifest.splits)}"
        )
    for name, values in selection.where.items():
        check_values(manifest.name, samples, "data.select.where", name, values)
    keys = set(manifest.splits[selection.split].part(selection.part))
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
    """Refuse an attribute, or a value of it, that no sample has; `key` is the setting at fault.

    Raises:
        UserError: it names what there is.
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
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in ordered[:_SHOWN]) + more if ordered else "none"
