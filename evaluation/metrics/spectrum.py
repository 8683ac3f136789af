"""Power spectra of images over the spatial frequency, whatever its direction."""

from itertools import pairwise

import torch
from torch import Tensor

BANDS = {"low": (0.0, 0.25), "middle": (0.25, 0.5), "high": (0.5, 1.0)}
"""Bands of frequency from low to high, as shares of the Nyquist frequency; without the mean."""
_FLOOR = 1e-12
"""Power that is added, so that images of one value have a logarithm."""


def radial_log_powers(images: Tensor, bins: int = 16) -> Tensor:
    """Mean power in dB of images (N, C, h, w) in rings of frequency, (N, bins) float64.

    The rings divide the frequencies up to Nyquist evenly; the mean is in none of them.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device="cpu").tolist()
    return _log_powers(images, list(pairwise(edges)))


def band_log_powers(images: Tensor) -> Tensor:
    """Mean power in dB of images (N, C, h, w) in each of the BANDS, (N, bands) float64."""
    return _log_powers(images, list(BANDS.values()))


def _log_powers(images: Tensor, rings: list[tuple[float, float]]) -> Tensor:
    """Of rings (low, high], of images in fp64: Parseval's sum over pixels is that over frequencies.

    A ring without a frequency has the power of the floor.
    """
    height, width = images.shape[2:]
    values = torch.fft.fft2(images.double(), norm="ortho").abs().square().mean(dim=1)
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device=images.device)[:, None]
    columns = torch.fft.fftfreq(width, dtype=torch.float64, device=images.device)
    frequency = 2 * (rows.square() + columns.square()).sqrt()
    found = []
    for low, high in rings:
        inside = (frequency > low) & (frequency <= high)
        count = int(inside.sum())
        found.append(values[:, inside].sum(dim=1) / max(count, 1))
    return 10 * (torch.stack(found, dim=1) + _FLOOR).log10()
