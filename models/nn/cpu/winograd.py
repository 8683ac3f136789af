"""3 x 3 convolutions with a quarter of the products (Winograd's way, arXiv 1509.09308, eq. 8).

A tile of 4 x 4 outputs depends on 6 x 6 inputs, through 36 products for each pair of channels and
not 144. Inputs, kernels and outputs change their basis for that, by three small matrices. After an
image is doubled, its 2 x 2 outputs depend on 3 x 3 inputs, through 9 products and not 36. This is
for fp32 on CPUs, where products are what takes the time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

AT_ONCE = 2**20
"""Values of a part of the batch in the changed basis, at most: they are to stay in the cache."""


@dataclass(frozen=True)
class WinogradTransform:
    """One way to convolve tiles that begin every `step` places of the padded input."""

    step: int
    least: int
    """Tiles that make up for changing the kernels."""
    read: int
    """Side of what a tile reads."""
    gives: int
    """Side of its outputs."""
    inputs: Tensor
    """(products, read^2)."""
    kernels: Tensor
    """(products, 9)."""
    outputs: Tensor
    """(products, gives^2), to be transposed."""

    @classmethod
    def of(
        cls, least: int, step: int, *, inputs: Tensor, kernels: Tensor, outputs: Tensor
    ) -> "WinogradTransform":
        """From the three matrices of one dimension; `inputs` is square."""
        both = (torch.kron(each, each).float() for each in (inputs, kernels, outputs))
        return cls(step, least, len(inputs), outputs.shape[1], *both)

    @classmethod
    def tiled(cls, least: int, points: tuple[float, ...]) -> "WinogradTransform":
        """Kernel and tile as polynomials, multiplied by their values; transposed."""
        step = len(points) - 1
        return cls.of(
            least,
            step,
            inputs=torch.linalg.inv(_powers(points, step + 2)).T,
            kernels=_powers(points, 3),
            outputs=_powers(points, step),
        )

    @property
    def products(self) -> int:
        """For each pair of channels, per tile."""
        return len(self.kernels)

    def suits(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the convolution of this input (B, C, H, W) gains by it, as measured."""
        return (
            x.device.type == "cpu"
            and x.dtype == weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and min(weight.shape[:2]) >= 128
            and x.shape[2] % self.step == x.shape[3] % self.step == 0
            and x.numel() >= self.least * self.step**2 * x.shape[1]
            and x.is_contiguous(memory_format=torch.channels_last)
        )


def _powers(points: tuple[float, ...], count: int) -> Tensor:
    """A polynomial's `count` coefficients to its values at the points and at infinity."""
    finite = torch.tensor(points, dtype=torch.float64)[:, None] ** torch.arange(count)
    infinite = torch.zeros(1, count, dtype=torch.float64)
    infinite[0, -1] = 1
    return torch.cat([finite, infinite])


LARGE = WinogradTransform.tiled(64, (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2))
"""Of the usual points 0, 1, -1, 2, -2 results are twice as far from exact ones (192 channels: 14
times as far as those of plain convolutions, and not 6)."""
SMALL = WinogradTransform.tiled(128, (0.0, 1.0, -1.0))
"""Tiles of 2 x 2 outputs, through 16 products and not 36: changing the kernels takes less."""
DOUBLED = WinogradTransform.of(
    least=32,
    step=1,
    inputs=torch.tensor([[-1.0, 1, 0], [0, 1, 0], [0, -1, 1]]),
    kernels=torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 1]]),
    outputs=torch.tensor([[-1.0, 0], [1, 1], [0, 1]]),
)
"""Of inputs x, y, z and kernel k, S its sum: S y - k0 (y - x) and S y + k2 (z - y)."""


def tiles_for(x: Tensor, weight: Tensor) -> WinogradTransform | None:
    """The tiles by which the convolution of (B, C, H, W) is fastest; None: by none."""
    return next((each for each in (LARGE, SMALL) if each.suits(x, weight)), None)


def convolved(x: Tensor, weight: Tensor, bias: Tensor, basis: WinogradTransform) -> Tensor:
    """(B, C, H, W), channels last, padded by 1, by kernels (D, C, 3, 3) and biases (D,).

    The result is (B, D, H', W'), H' twice H where the image is doubled first.
    """
    if torch.is_grad_enabled():
        return _Winograd.apply(x, weight, bias, basis)  # type: ignore[no-untyped-call]
    return _convolved(x.permute(0, 2, 3, 1), weight, bias, basis, None)


def _convolved(
    given: Tensor, weight: Tensor, bias: Tensor, basis: WinogradTransform, kept: list[Tensor] | None
) -> Tensor:
    """(B, H, W, C) to (B, D, H', W'); the inputs in the changed basis are put into `kept`."""
    kernels, (count, *sides, _) = _changed_kernels(weight, basis), given.shape
    height, width = (side // basis.step * basis.gives for side in sides)
    outputs = _empty(count, height, width, len(weight))
    size = _at_once(given, kernels, basis)
    written = torch.split(outputs.permute(0, 2, 3, 1), size)
    for part, out in zip(torch.split(given, size), written, strict=True):
        changed = _changed(part, basis)
        products = torch.bmm(changed, kernels.transpose(1, 2)).flatten(1)
        tiles = _tiles(out, basis.gives, basis.gives)
        torch.add((basis.outputs.T @ products).view(tiles.shape), bias, out=tiles)
        if kept is not None:
            kept.append(changed)
    return outputs


class _Winograd(torch.autograd.Function):
    """Keeps the input in the changed basis, `products` / `step`^2 times as large as it was."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        basis: WinogradTransform,
    ) -> Tensor:
        given, kept = x.permute(0, 2, 3, 1), list[Tensor]()
        outputs = _convolved(given, weight, bias, basis, kept)
        ctx.save_for_backward(weight, *kept)
        ctx.basis, ctx.shape = basis, given.shape
        return outputs

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        weight, *kept = ctx.saved_tensors
        basis: WinogradTransform = ctx.basis
        kernels = _changed_kernels(weight, basis)
        slopes = gradient.permute(0, 2, 3, 1).contiguous()
        gradients = _empty(*ctx.shape)
        for_x = gradients.permute(0, 2, 3, 1)
        for_kernels: Tensor | None = None
        size = _at_once(for_x, kernels, basis)
        for part, slope, out in zip(
            kept, torch.split(slopes, size), torch.split(for_x, size), strict=True
        ):
            tiles = _tiles(slope, basis.gives, basis.gives).reshape(basis.gives**2, -1)
            products = (basis.outputs @ tiles).view(basis.products, -1, len(weight))
            change = torch.bmm(products.transpose(1, 2), part)
            for_kernels = change if for_kernels is None else for_kernels.add_(change)
            _gather(basis.inputs.T @ torch.bmm(products, kernels).flatten(1), out, basis)
        assert for_kernels is not None
        for_weight = (for_kernels.flatten(1).T @ basis.kernels).view(weight.shape)
        return gradients, for_weight, slopes.flatten(0, 2).sum(0), None


def _empty(count: int, height: int, width: int, channels: int) -> Tensor:
    """(B, C, H, W), channels last; itself, since autograd forbids changing a view in place."""
    shape = (count, channels, height, width)
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)


def _at_once(x: Tensor, kernels: Tensor, basis: WinogradTransform) -> int:
    """How many pictures of (B, H, W, C) are convolved at once."""
    tiles = x.shape[1] * x.shape[2] // basis.step**2
    return max(1, AT_ONCE // (basis.products * tiles * max(kernels.shape[1:])))


def _changed_kernels(weight: Tensor, basis: WinogradTransform) -> Tensor:
    """(D, C, 3, 3) to (products, D, C)."""
    return (basis.kernels @ weight.reshape(-1, 9).T).view(-1, *weight.shape[:2])


def _changed(x: Tensor, basis: WinogradTransform) -> Tensor:
    """(B, H, W, C) to (products, tiles, C)."""
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    read = _tiles(padded, basis.read, basis.step).reshape(basis.read**2, -1)
    return (basis.inputs @ read).view(basis.products, -1, x.shape[3])


def _tiles(x: Tensor, side: int, step: int) -> Tensor:
    """A view of the tiles of (B, H, W, C): (side, side, B, rows, columns, C)."""
    return _oblongs(x, side, side, step)


def _oblongs(x: Tensor, high: int, wide: int, step: int) -> Tensor:
    batch, row, column, _ = x.stride()
    rows, columns = (x.shape[1] - high) // step + 1, (x.shape[2] - wide) // step + 1
    return x.as_strided(
        (high, wide, len(x), rows, columns, x.shape[3]),
        (row, column, batch, step * row, step * column, 1),
    )


def _gather(read: Tensor, out: Tensor, basis: WinogradTransform) -> None:
    """Adds up what overlapping tiles, (read^2, values), say of their inputs.

    The result, without the padding, goes to `out` (B, H, W, C).
    """
    count, height, width, channels = out.shape
    padded = out.new_zeros(count, height + 2, width + 2, channels)
    rows, columns = height // basis.step, width // basis.step
    shares = read.view(basis.read, basis.read, count, rows, columns, channels)
    for top in range(0, basis.read, basis.step):
        for left in range(0, basis.read, basis.step):
            part = shares[top : top + basis.step, left : left + basis.step]
            high, wide = part.shape[:2]
            place = padded[:, top : top + height, left : left + width]
            _oblongs(place, high, wide, basis.step).add_(part)
    out.copy_(padded[:, 1:-1, 1:-1])
