"""open_clip's preprocessing of images for inference, on tensors."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.pretrained.settings import ImagePreprocessing


def prepare(images: Tensor, settings: ImagePreprocessing, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] as a tower of `height` x `width` takes them, in fp32.

    Equal to open_clip's `image_transform` up to Pillow's rounding to 8 bits: of square images at
    most 1.1 levels of 255 before normalisation. (Where both sides of others shrink, Pillow chooses
    which one it resizes first, which bicubic shows near edges.)
    """
    pixels = (images.float() + 1) / 2
    target = (height, width)
    match settings.resize_mode:
        case "squash":
            pixels = _resize(pixels, target, settings.interpolation)
        case "shortest" if height == width:
            size = _shorter_side(pixels, height)
            pixels = _centre_crop(_resize(pixels, size, settings.interpolation), target)
        case "shortest":  # where open_clip does not pass the interpolation on
            size = _scaled(pixels, target, longest=False)
            pixels = _centre_crop(_resize(pixels, size, "bicubic"), target)
        case "longest":
            size = _scaled(pixels, target, longest=True)
            resized = _resize(pixels, size, settings.interpolation)
            pixels = _centre_pad(resized, target, settings.fill_color / 255)
    mean = torch.tensor(settings.mean, device=images.device)[:, None, None]
    std = torch.tensor(settings.std, device=images.device)[:, None, None]
    return (pixels - mean) / std


def _shorter_side(pixels: Tensor, side: int) -> tuple[int, int]:
    """The size with the shorter side `side`, the other one rounded down (torchvision's Resize)."""
    height, width = pixels.shape[-2:]
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def _scaled(pixels: Tensor, target: tuple[int, int], *, longest: bool) -> tuple[int, int]:
    """The size that just covers the target, or with `longest` just fits into it."""
    height, width = pixels.shape[-2:]
    ratios = height / target[0], width / target[1]
    ratio = max(ratios) if longest else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _resize(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """One side at a time, as Pillow does, which clips where bicubic overshoots in between."""
    mode = "bilinear" if interpolation == "bilinear" else "bicubic"
    (height, width), (rows, columns) = pixels.shape[-2:], size
    columns_first = columns <= width or rows >= height  # Pillow 13 where either is so
    for step in ((height, columns) if columns_first else (rows, width), size):
        if pixels.shape[-2:] != step:
            pixels = F.interpolate(pixels, step, mode=mode, align_corners=False, antialias=True)
            pixels = pixels.clamp(0, 1)
    return pixels


def _centre_crop(pixels: Tensor, target: tuple[int, int]) -> Tensor:
    top, left = (
        round((size - wanted) / 2) for size, wanted in zip(pixels.shape[-2:], target, strict=True)
    )
    return pixels[..., top : top + target[0], left : left + target[1]]


def _centre_pad(pixels: Tensor, target: tuple[int, int], value: float) -> Tensor:
    missing = target[0] - pixels.shape[-2], target[1] - pixels.shape[-1]
    (top, left), (bottom, right) = (
        [each // 2 for each in missing],
        [(each + 1) // 2 for each in missing],
    )
    return F.pad(pixels, (left, right, top, bottom), value=value)
