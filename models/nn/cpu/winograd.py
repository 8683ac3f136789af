"""3 x 3 convolutions with a quarter of the products (Winograd's way, arXiv 1509.09308, eq. 8).

A tile of 4 x 4 outputs depends on 6 x 6 inputs, through 36 products for each pair of channels and
not 144. Inputs, kernels and outputs are multiplied by three small matrices for that. After an image
is upsampled by 2, its 2 x 2 outputs depend on 3 x 3 inputs, through 9 products and not 36. This is
for fp32 on Intel's CPUs, where products are what takes the time: on an AMD EPYC (Zen 5) a UNet's
step took 9% longer by it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.nn.cpu import IS_INTEL

CHUNK = 2**20
"""Values of a part of the batch in the Winograd domain, at most: they are to stay in the cache."""


@dataclass(frozen=True)
class WinogradTransform:
    """One way to convolve tiles that begin every `step` positions of the padded input."""

    step: int
    min_tiles: int
    """Tiles that make up for transforming the kernels."""
    input_tile: int
    """Side of what a tile reads."""
    output_tile: int
    """Side of its outputs."""
    inputs: Tensor
    """(products, input_tile^2)."""
    kernels: Tensor
    """(products, 9)."""
    outputs: Tensor
    """(products, output_tile^2), to be transposed."""

    @classmethod
    def of(
        cls, min_tiles: int, step: int, *, inputs: Tensor, kernels: Tensor, outputs: Tensor
    ) -> "WinogradTransform":
        """From the three matrices of one dimension; `inputs` is square."""
        both = (torch.kron(each, each).float() for each in (inputs, kernels, outputs))
        return cls(step, min_tiles, len(inputs), outputs.shape[1], *both)

    @classmethod
    def tiled(cls, min_tiles: int, points: tuple[float, ...]) -> "WinogradTransform":
        """Kernel and tile as polynomials, multiplied by their values; transposed."""
        step = len(points) - 1
        return cls.of(
            min_tiles,
            step,
            inputs=torch.linalg.inv(_powers(points, step + 2)).T,
            kernels=_powers(points, 3),
            outputs=_powers(points, step),
        )

    @property
    def products(self) -> int:
        """For each pair of channels, per tile."""
        return len(self.kernels)

    def is_supported(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the convolution of this input (B, C, H, W) gains by it, as measured."""
        return (
            IS_INTEL
            and x.device.type == "cpu"
            and x.dtype == weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and min(weight.shape[:2]) >= 128
            and x.shape[2] % self.step == x.shape[3] % self.step == 0
            and x.numel() >= self.min_tiles * self.step**2 * x.shape[1]
            and x.is_contiguous(memory_format=torch.channels_last)
        )


def _powers(points: tuple[float, ...], count: int) -> Tensor:
    """A polynomial's `count` coefficients to its values at the points and at infinity."""
    finite = torch.tensor(points, dtype=torch.float64, device="cpu")
    finite = finite[:, None] ** torch.arange(count, device="cpu")
    infinite = torch.zeros(1, count, dtype=torch.float64, device="cpu")
    infinite[0, -1] = 1
    return torch.cat([finite, infinite])


LARGE = WinogradTransform.tiled(64, (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2))
"""Of the usual points 0, 1, -1, 2, -2 results are twice as far from exact ones (192 channels: 14
times as far as those of plain convolutions, and not 6)."""
SMALL = WinogradTransform.tiled(128, (0.0, 1.0, -1.0))
"""Tiles of 2 x 2 outputs, through 16 products and not 36: transforming the kernels takes less."""
UPSAMPLED = WinogradTransform.of(
    min_tiles=32,
    step=1,
    inputs=torch.tensor([[-1.0, 1, 0], [0, 1, 0], [0, -1, 1]], device="cpu"),
    kernels=torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 1]], device="cpu"),
    outputs=torch.tensor([[-1.0, 0], [1, 1], [0, 1]], device="cpu"),
)
"""Of inputs x, y, z and kernel k, S its sum: S y - k0 (y - x) and S y + k2 (z - y)."""


def tiles_for(x: Tensor, weight: Tensor) -> WinogradTransform | None:
    """The tiles by which the convolution of (B, C, H, W) is fastest; None: by none."""
    return next((each for each in (LARGE, SMALL) if each.is_supported(x, weight)), None)


def convolve(x: Tensor, weight: Tensor, bias: Tensor, transform: WinogradTransform) -> Tensor:
    """(B, C, H, W), channels last, padded by 1, by kernels (D, C, 3, 3) and biases (D,).

    The result is (B, D, H', W'), H' twice H where the image is upsampled first.
    """
    if torch.is_grad_enabled():
        return _Winograd.apply(x, weight, bias, transform)  # type: ignore[no-untyped-call]
    return _convolve(x.permute(0, 2, 3, 1), weight, bias, transform, None)


def _convolve(
    given: Tensor,
    weight: Tensor,
    bias: Tensor,
    transform: WinogradTransform,
    kept: list[Tensor] | None,
) -> Tensor:
    """(B, H, W, C) to (B, D, H', W'); the inputs in the Winograd domain are put into `kept`."""
    kernels, (count, *sides, _) = _transform_kernels(weight, transform), given.shape
    height, width = (side // transform.step * transform.output_tile for side in sides)
    outputs = _empty(count, height, width, len(weight))
    size = _chunk_size(given, kernels, transform)
    written = torch.split(outputs.permute(0, 2, 3, 1), size)
    for part, out in zip(torch.split(given, size), written, strict=True):
        transformed = _transform_input(part, transform)
        products = torch.bmm(transformed, kernels.transpose(1, 2)).flatten(1)
        tiles = _tiles(out, transform.output_tile, transform.output_tile)
        torch.add((transform.outputs.T @ products).view(tiles.shape), bias, out=tiles)
        if kept is not None:
            kept.append(transformed)
    return outputs


class _Winograd(torch.autograd.Function):
    """Keeps the input in the Winograd domain, `products` / `step`^2 times as large as it was."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        transform: WinogradTransform,
    ) -> Tensor:
        given, kept = x.permute(0, 2, 3, 1), list[Tensor]()
        outputs = _convolve(given, weight, bias, transform, kept)
        ctx.save_for_backward(weight, *kept)
        ctx.transform, ctx.shape = transform, given.shape
        return outputs

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        weight, *kept = ctx.saved_tensors
        transform: WinogradTransform = ctx.transform
        kernels = _transform_kernels(weight, transform)
        slopes = gradient.permute(0, 2, 3, 1).contiguous()
        gradients = _empty(*ctx.shape)
        for_x = gradients.permute(0, 2, 3, 1)
        for_kernels: Tensor | None = None
        size = _chunk_size(for_x, kernels, transform)
        side = transform.output_tile
        for part, slope, out in zip(
            kept, torch.split(slopes, size), torch.split(for_x, size), strict=True
        ):
            tiles = _tiles(slope, side, side).reshape(side**2, -1)
            products = (transform.outputs @ tiles).view(transform.products, -1, len(weight))
            change = torch.bmm(products.transpose(1, 2), part)
            for_kernels = change if for_kernels is None else for_kernels.add_(change)
            _add_tiles(transform.inputs.T @ torch.bmm(products, kernels).flatten(1), out, transform)
        assert for_kernels is not None
        for_weight = (for_kernels.flatten(1).T @ transform.kernels).view(weight.shape)
        return gradients, for_weight, slopes.flatten(0, 2).sum(0), None


def _empty(count: int, height: int, width: int, channels: int) -> Tensor:
    """(B, C, H, W), channels last; itself, since autograd forbids changing a view in position."""
    shape = (count, channels, height, width)
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)


def _chunk_size(x: Tensor, kernels: Tensor, transform: WinogradTransform) -> int:
    """How many images of (B, H, W, C) are convolved at once."""
    tiles = x.shape[1] * x.shape[2] // transform.step**2
    return max(1, CHUNK // (transform.products * tiles * max(kernels.shape[1:])))


def _transform_kernels(weight: Tensor, transform: WinogradTransform) -> Tensor:
    """(D, C, 3, 3) to (products, D, C)."""
    return (transform.kernels @ weight.reshape(-1, 9).T).view(-1, *weight.shape[:2])


def _transform_input(x: Tensor, transform: WinogradTransform) -> Tensor:
    """(B, H, W, C) to (products, tiles, C)."""
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    read = _tiles(padded, transform.input_tile, transform.step).reshape(transform.input_tile**2, -1)
    return (transform.inputs @ read).view(transform.products, -1, x.shape[3])


def _tiles(x: Tensor, side: int, step: int) -> Tensor:
    """A view of the tiles of (B, H, W, C): (side, side, B, rows, columns, C)."""
    return _windows(x, side, side, step)


def _windows(x: Tensor, high: int, wide: int, step: int) -> Tensor:
    batch, row, column, _ = x.stride()
    rows, columns = (x.shape[1] - high) // step + 1, (x.shape[2] - wide) // step + 1
    return x.as_strided(
        (high, wide, len(x), rows, columns, x.shape[3]),
        (row, column, batch, step * row, step * column, 1),
    )


def _add_tiles(read: Tensor, out: Tensor, transform: WinogradTransform) -> None:
    """Add up overlapping tiles (input_tile^2, values).

    The result, without the padding, goes to `out` (B, H, W, C).
    """
    count, height, width, channels = out.shape
    padded = out.new_zeros(count, height + 2, width + 2, channels)
    rows, columns = height // transform.step, width // transform.step
    shares = read.view(transform.input_tile, transform.input_tile, count, rows, columns, channels)
    for top in range(0, transform.input_tile, transform.step):
        for left in range(0, transform.input_tile, transform.step):
            part = shares[top : top + transform.step, left : left + transform.step]
            high, wide = part.shape[:2]
            position = padded[:, top : top + height, left : left + width]
            _windows(position, high, wide, transform.step).add_(part)
    out.copy_(padded[:, 1:-1, 1:-1])
