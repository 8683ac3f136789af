"""Peak signal-to-noise ratio of 8-bit images."""

import torch
from torch import Tensor

DEFINITION = "10 log10(255^2 / mean squared error over all values) per image; mean"


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """PSNR in dB of images (n, H, W, 3) uint8: (n,) float64; inf where they are equal."""
    error = images.double() - originals.double()
    return 10 * torch.log10(255.0**2 / error.square().flatten(1).mean(dim=1))
