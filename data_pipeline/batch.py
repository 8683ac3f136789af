"""Samples, and the batches of them that a training step receives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mezzotint.common.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One sample: image (H, W, 3) uint8, text (L,) int64, arrays as stored, and class."""

    key: str
    caption: str
    image: NDArray[np.uint8] | None
    text: NDArray[np.int64] | None
    arrays: Mapping[str, NDArray[np.generic]]
    label: int | None = None
    hint: NDArray[np.float32] | None = None
    """(C, H, W) in [0, 1]."""
    empty_caption: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """What the arrays of captions are of an empty one."""
    sizes: tuple[int, ...] | None = None
    """(6,) of the image: `SizeCondition.values`."""


@dataclass(frozen=True)
class Batch:
    """A batch of B samples.

    Attributes:
        keys: Sample keys.
        captions: Captions as written.
        image: (B, 3, H, W) uint8 with channels last in memory, as decoded, if `data.image` is set;
            or float32 in [-1, 1]. `images` is the second of either, made on the image's device.
        text: (B, L) int64 token ids, padded with 0, if `data.text` is set.
        arrays: (B, ...) tensors by name, one for every name in `data.arrays`; integers are int64,
            floating-point numbers float32.
        label: (B,) int64 classes, if `data.label` is set.
        hint: (B, C, H, W) float32 in [0, 1], if `data.hint` is set.
        sizes: (B, 6) int64 in pixels, if `data.image` is set: height and width of the image files,
            rows above and columns left of what is shown of them after resizing, and its height and
            width.
        empty_caption: What the arrays of captions are of an empty one: `text_features` (L, C),
            `text_tokens` () and `text_embedding` (D,). Of a sample they have those of its caption.
        damaged: By cause, the samples that did not decode and have others in their place.

    `images`, `image_sizes`, `tokens`, `labels`, `hints` and `array` raise UserError where the
    setting is missing.
    """

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    image: Tensor | None = None
    text: Tensor | None = None
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    label: Tensor | None = None
    hint: Tensor | None = None
    empty_caption: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: Tensor | None = None
    damaged: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1]."""
        image = _required(self.image, "image", "images")
        if image.is_floating_point():
            return image
        floats = image.to(torch.float32, memory_format=torch.contiguous_format)
        return floats.div_(127.5).sub_(1.0)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor of its samples changed."""
        return replace(
            self,
            image=None if self.image is None else change(self.image),
            text=None if self.text is None else change(self.text),
            arrays={name: change(array) for name, array in self.arrays.items()},
            label=None if self.label is None else change(self.label),
            hint=None if self.hint is None else change(self.hint),
            sizes=None if self.sizes is None else change(self.sizes),
        )

    def pin_memory(self) -> "Batch":
        """The batch in memory from which it is copied to a GPU while the program goes on."""
        return self.map(Tensor.pin_memory)

    @property
    def image_sizes(self) -> Tensor:
        return _required(self.sizes, "image", "the sizes of images")

    @property
    def tokens(self) -> Tensor:
        return _required(self.text, "text.tokenizer", "captions")

    @property
    def labels(self) -> Tensor:
        return _required(self.label, "label", "classes")

    @property
    def hints(self) -> Tensor:
        return _required(self.hint, "hint", "hints")

    def array(self, name: str) -> Tensor:
        if name not in self.arrays:
            raise UserError(f"data.arrays has no '{name}', but this task needs it: add it")
        return self.arrays[name]


def _required(value: Tensor | None, key: str, needed: str) -> Tensor:
    if value is None:
        raise UserError(f"data.{key} is not set, but this task needs {needed}: add it")
    return value


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples.

    Raises:
        UserError: Arrays of the same name differ in shape.
    """
    first = samples[0]
    image = text = label = hint = sizes = None
    if first.hint is not None:
        hint = torch.from_numpy(np.stack([one.hint for one in samples if one.hint is not None]))
    if first.label is not None:
        label = torch.tensor([one.label for one in samples], dtype=torch.int64, device="cpu")
    if first.image is not None:
        images = np.stack([one.image for one in samples if one.image is not None])
        image = torch.from_numpy(images).permute(0, 3, 1, 2)
    if first.text is not None:
        text = torch.from_numpy(np.stack([one.text for one in samples if one.text is not None]))
    if first.sizes is not None:
        rows = [one.sizes for one in samples]
        sizes = torch.tensor(rows, dtype=torch.int64, device="cpu")
    return Batch(
        keys=tuple(one.key for one in samples),
        captions=tuple(one.caption for one in samples),
        image=image,
        text=text,
        arrays={name: _stack(name, samples) for name in first.arrays},
        label=label,
        hint=hint,
        empty_caption={name: _tensor(each) for name, each in first.empty_caption.items()},
        sizes=sizes,
    )


def _stack(name: str, samples: Sequence[Sample]) -> Tensor:
    arrays = [sample.arrays[name] for sample in samples]
    if len({array.shape for array in arrays}) > 1:
        other = next(s for s in samples if s.arrays[name].shape != arrays[0].shape)
        raise UserError(
            f"array '{name}' of '{other.key}' has shape {other.arrays[name].shape}, that of "
            f"'{samples[0].key}' has {arrays[0].shape}; derive the set again"
        )
    return _tensor(np.stack(arrays))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    """Floating-point numbers as float32, integers as int64."""
    kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
    return torch.from_numpy(array.astype(kind))
