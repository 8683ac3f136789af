"""The settings of an edit by Imagic, from options of the command line."""

import math

from mezzotint.common.errors import UserError
from mezzotint.inference.imagic.config import ImagicConfig
from mezzotint.inference.imagic.edit import ETAS

Pair = tuple[int | None, float | None]
"""Steps and learning rate; None is the default."""


def training(
    *,
    embedding: Pair,
    network: Pair,
    upsampler: Pair,
    rank: int | None,
    batch: int | None,
    seed: int,
) -> ImagicConfig:
    """The defaults with what is given."""
    given = {"embedding": embedding, "network": network, "upsampler": upsampler}
    tree = ImagicConfig(rank=rank, seed=seed).model_dump()
    for name, pair in given.items():
        for key, value in zip(("steps", "lr"), pair, strict=True):
            if value is not None:
                tree[name][key] = value
    if batch is not None:
        tree["batch"] = batch
    return ImagicConfig.model_validate(tree)


def parse_etas(text: str | None) -> tuple[float, ...]:
    """Numbers, as in 0,0.5,1; by default those of `ETAS`.

    Raises:
        UserError: something else.
    """
    if text is None:
        return ETAS
    try:
        found = tuple(dict.fromkeys(float(each) for each in text.split(",")))
    except ValueError as error:
        raise UserError(f"--etas {text}: looks like 0,0.5,0.8,1") from error
    if not all(map(math.isfinite, found)):
        raise UserError(f"--etas {text}: looks like 0,0.5,0.8,1")
    return found
