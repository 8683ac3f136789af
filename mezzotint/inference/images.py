"""Between network images in [-1, 1] and the 8-bit images that are stored and evaluated."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from models.finite import require_finite


def to_bytes(images: Tensor) -> Tensor:
    """Images (..., 3, H, W) in [-1, 1] as (..., H, W, 3) uint8: rounded, and clipped.

    Raises:
        NonFiniteError: images (B, 3, H, W) of which one has values that are not finite.
    """
    require_finite("the image is", images)
    levels = (images.float() + 1.0) * 127.5
    return levels.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).contiguous()


def from_bytes(images: Tensor) -> Tensor:
    """Images (..., H, W, 3) uint8 as (..., 3, H, W) float32 in [-1, 1]."""
    return images.movedim(-1, -3).float() / 127.5 - 1.0


def to_pil(image: Tensor) -> Image.Image:
    """One image (H, W, 3) uint8 as a PIL image."""
    return Image.fromarray(image.numpy())


def quantize_images(
    images: Tensor,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    """Images (n, H, W, 3) uint8 encoded to codes (n, ...) and decoded again.

    Images with equal codes become equal bytes, whatever batch they were decoded in.
    """
    parts = torch.split(images, 64)
    codes = torch.cat([encode(from_bytes(part.to(device))) for part in parts])
    distinct, index = torch.unique(codes, dim=0, return_inverse=True)
    decoded = torch.cat([to_bytes(decode(part)) for part in torch.split(distinct, 64)])
    return decoded[index].cpu()
