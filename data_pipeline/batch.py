"""What a training step receives."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mezzotint.common.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Samples side by side; ``B`` is their number.

    Attributes:
        keys: Sample keys.
        captions: Captions as written.
        image: (B, 3, H, W) float32 in [-1, 1], if ``data.image`` is set.
        text: (B, L) int64 token ids, padded with 0, if ``data.text`` is set.
        arrays: Name to (B, ...) tensor for every name in ``data.arrays``; integers come as
            int64, floating-point numbers as float32.
        label: (B,) int64 classes, if ``data.label`` is set.
    """

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    image: Tensor | None = None
    text: Tensor | None = None
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    label: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def images(self) -> Tensor:
        """``image``, which must be there."""
        if self.image is None:
            raise UserError("data.image is not set, but this task needs images: add it")
        return self.image

    @property
    def tokens(self) -> Tensor:
        """``text``, which must be there."""
        if self.text is None:
            raise UserError("data.text is not set, but this task needs captions: add it")
        return self.text

    @property
    def labels(self) -> Tensor:
        """``label``, which must be there."""
        if self.label is None:
            raise UserError("data.label is not set, but this task needs classes: add it")
        return self.label

    def array(self, name: str) -> Tensor:
        """The array ``name``, which must be there."""
        if name not in self.arrays:
            raise UserError(f"data.arrays has no '{name}', but this task needs it: add it")
        return self.arrays[name]
