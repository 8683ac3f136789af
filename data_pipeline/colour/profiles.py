"""Conversion to sRGB by ICC profiles, through littleCMS with perceptual intent."""

import io
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Conversion = Callable[[Image.Image], Image.Image]
"""From the mode of a profile to RGB, 8 bits each."""

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_CLASSES = ("mntr", "scnr", "prtr", "spac")  # not device links, abstract or named-colour profiles
_NEGLIGIBLE = 2
_STRIP_PIXELS = 1 << 18


class InvalidProfileError(Exception):
    """A profile that is damaged, of another colour space than the image, or no device profile."""


# Keyed by the profile's bytes; decoding threads share a transform, which littleCMS allows.
@lru_cache(maxsize=16)
def to_srgb(profile: bytes, mode: str) -> Conversion | None:
    """The conversion of images in mode `L`, `RGB` or `CMYK` to sRGB.

    None if it would change no colour by more than 2 levels, as for the many copies of sRGB.

    Raises:
        InvalidProfileError: The profile is of no use for such images.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, kind = source.profile.xcolor_space.strip(), source.profile.device_class.strip()
        if space != _SPACES[mode]:
            raise InvalidProfileError(f"it is for {space} images")
        if kind not in _CLASSES:
            raise InvalidProfileError(f"it is of class '{kind}'")
        # A profile object must not be shared between threads, so each transform has its own.
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        # littleCMS 2.19 errs by up to 10 levels in dark grey where it optimises.
        flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
        transform = ImageCms.ImageCmsTransform(source, srgb, mode, "RGB", flags=flags)
    except (OSError, ValueError, ImageCms.PyCMSError) as error:
        raise InvalidProfileError(str(error)) from error
    if mode == "CMYK":
        return transform.apply
    levels = np.arange(0, 256, 1 if mode == "L" else 15, dtype=np.uint8)
    if mode == "L":
        before = np.stack([levels] * 3, axis=-1)
        after = np.asarray(transform.apply(Image.fromarray(levels[None])))[0]
        conversion: Conversion = partial(_in_table, colours=after.tobytes())
    else:
        before = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
        after = np.asarray(transform.apply(Image.fromarray(before[None])))[0]
        conversion = transform.apply
    change = np.abs(after.astype(int) - before).max()
    return conversion if change > _NEGLIGIBLE else None


def convert_16_bit(pixels: NDArray[np.uint16], convert: Conversion | None) -> NDArray[np.uint8]:
    """(H, W, 1 or 3) uint16 to (H, W, 1 or 3) uint8, three channels if there is a conversion.

    littleCMS is called for the neighbouring 8-bit levels, and its results are interpolated.
    """
    if convert is None:
        return _to_8_bit(pixels)
    height, width, _ = pixels.shape
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        out[top : top + rows] = _interpolated(pixels[top : top + rows], convert)
    return out


def _to_8_bit(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Rounded value / 257."""
    return ((pixels.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)


def _interpolated(pixels: NDArray[np.uint16], convert: Conversion) -> NDArray[np.uint8]:
    below = (pixels // 257).astype(np.uint8)
    fraction = (pixels % 257).astype(np.float32) / 257
    above = np.minimum(below, 254) + np.uint8(1)
    total = np.zeros((*pixels.shape[:2], 3), np.float32)
    for corner in product((False, True), repeat=pixels.shape[2]):
        weight = np.where(corner, fraction, 1 - fraction).prod(axis=2, keepdims=True)
        if weight.any():
            levels = np.where(corner, above, below)
            colours = convert(
                Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels)
            )
            total += weight * np.asarray(colours)
    return (total + 0.5).astype(np.uint8)


def _in_table(image: Image.Image, colours: bytes) -> Image.Image:
    """The RGB colours of grey levels."""
    indexed = image.copy()
    indexed.putpalette(colours)
    return indexed.convert("RGB")
