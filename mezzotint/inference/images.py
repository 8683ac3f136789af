"""Between network images in [-1, 1] and the 8-bit pictures that are stored and judged."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_bytes(images: Tensor) -> Tensor:
    """Images (..., 3, H, W) in [-1, 1] as (..., H, W, 3) uint8; values outside are clipped."""
    levels = (images.float() + 1.0) * 127.5
    return levels.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).contiguous()


def from_bytes(pictures: Tensor) -> Tensor:
    """Pictures (..., H, W, 3) uint8 as images (..., 3, H, W) float32 in [-1, 1]."""
    return pictures.movedim(-1, -3).float() / 127.5 - 1.0


def to_pil(picture: Tensor) -> Image.Image:
    """One picture (H, W, 3) uint8 as a PIL image."""
    return Image.fromarray(picture.numpy())


def from_pil(image: Image.Image) -> Tensor:
    """A PIL image as (H, W, 3) uint8."""
    return torch.from_numpy(np.array(image.convert("RGB")))
