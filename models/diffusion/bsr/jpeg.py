"""What baseline JPEG loses of an image (ITU-T T.81; colours as in JFIF), without a file.

On the device of the image, and the same on every one up to rounding.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

# T.81, tables K.1 and K.2: quantisation of brightness and colour at quality 50
_BRIGHTNESS = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100
103 99
"""
_COLOUR = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""
_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """An image (3, h, w) in [0, 1] as libjpeg gives it back, its colours at half the resolution."""
    levels = (image.float() * 255).round().clamp(0, 255)
    height, width = levels.shape[1:]
    matrix = torch.tensor(_TO_YCBCR, dtype=torch.float64, device="cpu")
    planes = torch.einsum("ij,jhw->ihw", matrix.to(levels), levels).round()
    planes = _padded(planes, -height % 2, -width % 16)
    brightness = _quantised(planes[:1] - 128, _table(_BRIGHTNESS, quality)) + 128
    colour = _quantised(F.avg_pool2d(planes[1:], 2).round(), _table(_COLOUR, quality)).round()
    colour = colour[None, :, : -(-height // 2), : -(-width // 2)]
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)[0]
    whole = (brightness.round().clamp(0, 255), colour)
    found = torch.cat([each[:, :height, :width] for each in whole])
    rgb = torch.einsum("ij,jhw->ihw", matrix.inverse().to(found), found)
    return (rgb.round().clamp(0, 255) / 255).to(image.dtype)


@lru_cache(maxsize=256)
def _table(text: str, quality: int) -> Tensor:
    """The quantisation steps (8, 8) of a quality from 1 to 100, as libjpeg scales them."""
    with torch.inference_mode(mode=False):
        base = torch.tensor([int(each) for each in text.split()], device="cpu").view(8, 8)
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        return ((base * scale + 50) // 100).clamp(1, 255).float()


@lru_cache(maxsize=1)
def _cosines() -> Tensor:
    """The orthonormal DCT-II of 8 values, (frequency, position)."""
    with torch.inference_mode(mode=False):
        place = torch.arange(8, dtype=torch.float64, device="cpu")
        waves = torch.cos(math.pi / 8 * (place + 0.5) * place[:, None]) / 2
        waves[0] /= math.sqrt(2)
        return waves.float()


def _padded(planes: Tensor, rows: int, columns: int) -> Tensor:
    """Planes (n, h, w) with their last row and column repeated."""
    return F.pad(planes[None], (0, columns, 0, rows), mode="replicate")[0]


def _quantised(planes: Tensor, table: Tensor) -> Tensor:
    """Planes (n, h, w) with every 8 x 8 block's frequencies rounded to steps of the table.

    Rows are filled up to a multiple of 8 by the last one.
    """
    planes = _padded(planes, -planes.shape[1] % 8, 0)
    count, height, width = planes.shape
    blocks = planes.view(count, height // 8, 8, width // 8, 8).transpose(2, 3)
    waves, steps = _cosines().to(planes), table.to(planes)
    found = (waves @ blocks @ waves.T / steps).round() * steps
    return (waves.T @ found @ waves).transpose(2, 3).reshape(count, height, width)
