"""Reading hints: image or array members as (C, H, W) float32 in [0, 1]."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import Preprocessing

HINT_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "npy")
"""Last parts of a hint's member, in order of preference."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
}
Hint = NDArray[np.float32]


def read_image_hint(
    content: bytes, name: str, *, channels: int, size: int, prepare: Preprocessing | None = None
) -> Hint:
    """A PNG, JPEG or WebP file, which messages call `name`: (channels, size, size) in [0, 1].

    Values are taken as they are stored, without colour profiles. Grey levels become `channels`
    equal channels; colours that are all grey are one channel. An image of another size is padded
    with 0 or cropped, and resized, as `prepare` says.

    Raises:
        UserError: no image, another number of channels, or another size and no `prepare`.
    """
    values = _decoded(content, name)
    values = _with_channels(values, channels, name)
    if values.shape[1:] != (size, size):
        if prepare is None:
            raise UserError(_other_size(name, values.shape[1:], size))
        values = _square(values, prepare.model_copy(update={"size": size}))
    return values


def image_hint_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels of a hint's image file, after a trial decoding.

    Raises:
        UserError: it is no image that a hint can be.
    """
    height, width = _decoded(content, name).shape[1:]
    return width, height


def read_array_hint(content: bytes, name: str, *, channels: int, size: int) -> Hint:
    """A `.npy` file of (channels, size, size): floats in [0, 1], or uint8 of 0 to 255.

    Raises:
        UserError: no plain array, another shape, or values outside of the range.
    """
    try:
        array: NDArray[np.generic] = np.load(io.BytesIO(content), allow_pickle=False)
        assert isinstance(array, np.ndarray)
    except (ValueError, EOFError, OSError, AssertionError) as error:
        raise UserError(f"{name}: not a plain array; write it with numpy.save") from error
    return hint_of_array(array, name, channels=channels, size=size)


def hint_of_array(array: NDArray[np.generic], name: str, *, channels: int, size: int) -> Hint:
    """An array (channels, size, size) as a hint; see `read_array_hint`."""
    if array.ndim != 3:
        raise UserError(f"{name}: has shape {array.shape}; a hint is (channels, height, width)")
    if array.shape[0] != channels:
        raise UserError(_other_channels(name, array.shape[0], channels))
    if array.shape[1:] != (size, size):
        raise UserError(_other_size(name, array.shape[1:], size))
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{name}: {array.dtype} values; store float in [0, 1], or uint8")
    values = array.astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise UserError(f"{name}: values outside of [0, 1]; scale the hint to this range")
    return values


def _decoded(content: bytes, name: str) -> Hint:
    """An image file as (1 or 3, H, W) in [0, 1]."""
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        image.load()
        return _values(image, name)
    except _BOMBS as error:
        raise UserError(f"{name}: too many pixels ({error}); shrink the hint") from error
    except _DAMAGE as error:
        raise UserError(
            f"{name}: not a readable PNG, JPEG or WebP image; give a hint in one of these formats"
        ) from error


def _values(image: Image.Image, name: str) -> Hint:
    """(1 or 3, H, W) in [0, 1]."""
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.asarray(image).astype(np.float32) / np.float32(65535)
        return wide[None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise UserError(f"{name}: a hint with transparent pixels; save it without transparency")
    grey = image.mode in ("1", "L", "LA")
    levels = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.float32) / np.float32(255)
    return levels[None] if grey else levels.transpose(2, 0, 1)


def _with_channels(values: Hint, channels: int, name: str) -> Hint:
    if len(values) == channels:
        return np.ascontiguousarray(values)
    if len(values) == 1:
        return np.repeat(values, channels, axis=0) if channels == 3 else _refused(name, 1, channels)
    if channels == 1 and (values == values[:1]).all():
        return np.ascontiguousarray(values[:1])
    return _refused(name, len(values), channels)


def _refused(name: str, found: int, channels: int) -> Hint:
    raise UserError(_other_channels(name, found, channels))


def _square(values: Hint, prepare: Preprocessing) -> Hint:
    """Padded with 0 or cropped to a square, and resized, each channel in float32."""
    height, width = values.shape[1:]
    if prepare.fit == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        rest = ((0, 0), (top, side - height - top), (left, side - width - left))
        values = np.pad(values, rest)
    else:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        values = values[:, top : top + side, left : left + side]
    size = (prepare.size, prepare.size)
    resized = [
        np.asarray(Image.fromarray(channel, mode="F").resize(size, _FILTERS[prepare.filter]))
        for channel in np.ascontiguousarray(values)
    ]
    return np.clip(np.stack(resized), 0, 1)


def _other_size(name: str, found: tuple[int, ...], size: int) -> str:
    height, width = found
    return (
        f"{name}: the hint is {width} x {height} pixels, but the images are {size} x {size}; make "
        "it at that size"
    )


def _other_channels(name: str, found: int, channels: int) -> str:
    return f"{name}: the hint has {found} channels, but {channels} are needed; convert it"
