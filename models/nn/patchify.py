"""Images as patches, and resizing."""

from torch import Tensor
from torch.nn import functional as F


def patchify(image: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to one vector per patch, in raster order: (B, H W / size^2, C size^2)."""
    return F.pixel_unshuffle(image, size).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `patches`: (B, N, C size^2) to (B, C, height, width)."""
    batch, _, values = tokens.shape
    grid = tokens.transpose(1, 2).reshape(batch, values, height // size, width // size)
    return F.pixel_shuffle(grid, size)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) to (B, C, height, width), bilinear, antialiased where it shrinks, in fp32."""
    image = image.float()
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(
        image, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
