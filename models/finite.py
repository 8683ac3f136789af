"""Numbers that are not finite stop where they arise, with the weight or the sample by name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mezzotint.common.errors import UserError


class NonFiniteError(UserError):
    """Values of a sample of a batch are NaN or infinite."""

    def __init__(self, what: str, row: int, names: Sequence[str] = ()) -> None:
        sample = names[row] if row < len(names) else f"sample {row} of the batch"
        super().__init__(
            f"{sample}: {what} not finite (NaN or infinite); the model has diverged or overflows: "
            "use an earlier checkpoint, or precision fp32"
        )
        self.what, self.row = what, row

    def named(self, names: Sequence[str]) -> "NonFiniteError":
        """The same with the names of the batch's samples."""
        return NonFiniteError(self.what, self.row, names)


def require_finite(what: str, values: Tensor, names: Sequence[str] = ()) -> None:
    """Refuse values (B, ...) of samples that are not all finite; `what` ends in its verb.

    Raises:
        NonFiniteError: with the name of the first such sample.
    """
    if values.numel() == 0 or is_finite(values):
        return
    rows = values.isfinite().flatten(1).all(dim=1) if values.ndim > 1 else values.isfinite()
    raise NonFiniteError(what, int((~rows).nonzero()[0]), names)


@contextmanager
def named_samples(names: Sequence[str]) -> Iterator[None]:
    """Name the samples of a batch in the errors of what is computed inside."""
    try:
        yield
    except NonFiniteError as error:
        raise error.named(names) from error


def is_finite(values: Tensor) -> bool:
    """Whether all values are finite, in one pass without a copy."""
    if not values.is_floating_point() or values.numel() == 0:
        return True
    low, high = torch.aminmax(values.detach())
    return bool(low.isfinite() & high.isfinite())


def require_finite_weights(where: str, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite; `where` is their file or directory.

    Attention masks of other libraries, whose names end in `mask`, may hold -inf.

    Raises:
        UserError: with the first such weight.
    """
    for name, weight in weights.items():
        if is_finite(weight):
            continue
        wrong = ~weight.isfinite()
        if name.endswith("mask"):
            wrong &= ~weight.isneginf()
        if count := int(wrong.sum()):
            raise UserError(
                f"{where}: weight {name}: {count:,} of {weight.numel():,} values are not finite "
                "(NaN or infinite); take the weights of an earlier checkpoint, or a sound file"
            )
