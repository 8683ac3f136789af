"""How close a picture is to the one it should be: PSNR and SSIM of 8-bit pictures."""

import torch
from torch import Tensor
from torch.nn import functional as F

PEAK = 255.0
PSNR_DEFINITION = "10 log10(255^2 / mean squared error over all values) per picture; mean"
SSIM_DEFINITION = (
    "Wang et al. 2004: gaussian window 11, sigma 1.5, K1 0.01, K2 0.03, population covariance, "
    "whole windows only, colours averaged; mean"
)


def psnr(pictures: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of (n, H, W, 3) uint8: (n,) float64; inf where equal."""
    error = pictures.double() - originals.double()
    return 10 * torch.log10(PEAK**2 / error.square().flatten(1).mean(dim=1))


def ssim(pictures: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13) of (n, H, W, 3) uint8: (n,) float64.

    Raises:
        ValueError: pictures smaller than the window of 11.
    """
    if min(pictures.shape[1:3]) < 11:
        raise ValueError(f"pictures of {tuple(pictures.shape[1:3])} are smaller than the window")
    x, y = (each.movedim(-1, 1).double().flatten(0, 1)[:, None] for each in (pictures, originals))
    window = _window().to(x)

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window)

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x.square()
    variance_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    one, two = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    similarity = (2 * mean_x * mean_y + one) * (2 * covariance + two)
    similarity = similarity / (mean_x.square() + mean_y.square() + one)
    similarity = similarity / (variance_x + variance_y + two)
    return similarity.flatten(1).mean(dim=1).view(len(pictures), -1).mean(dim=1)


def _window() -> Tensor:
    """Gaussian of sigma 1.5 on 11 x 11 places, sum 1: (1, 1, 11, 11)."""
    place = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-place.square() / (2 * 1.5**2))
    line = line / line.sum()
    return (line[:, None] * line)[None, None]
