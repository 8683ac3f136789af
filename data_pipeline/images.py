"""Decoding image files into RGB arrays of a wanted shape."""

import io
import math
import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data_pipeline.colour import jpeg, png
from data_pipeline.colour.profiles import (
    Conversion,
    InvalidProfileError,
    convert_16_bit,
    to_srgb,
)
from data_pipeline.config import ImageConfig
from data_pipeline.geometry.frame import Frame, SizeCondition, View
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import Filter

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
"""Member extensions of images, in order of preference."""

_SCALED = 2
"""A scaled image has at least so many times the side that it is resized to."""
_ROUNDING = 1e-9
_FORMATS = ("PNG", "JPEG", "WEBP")
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
}
# Exceptions of Pillow's decoders on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
# By the values of EXIF's orientation that need a change.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
# The mode in which a profile describes the colours of an image; RGB for all others.
_COLOUR_MODES = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class ImageNote(StrEnum):
    """What was done to show an image as its author saw it."""

    CONVERTED = "converted to sRGB"
    PROFILE_IGNORED = "colour profile ignored"
    CMYK = "CMYK without a profile"
    UPRIGHT = "turned upright"
    ON_WHITE = "transparent, put on white"
    FIRST_FRAME = "first of several frames"
    EXIF_IGNORED = "EXIF ignored"


@dataclass(frozen=True)
class DecodedImage:
    """An image in RGB, upright, on white."""

    decoded: Image.Image | NDArray[np.uint8]
    """An image of Pillow, or (H, W, 3)."""
    notes: frozenset[ImageNote]

    @cached_property
    def image(self) -> Image.Image:
        if isinstance(self.decoded, np.ndarray):
            return Image.fromarray(self.decoded)
        return self.decoded

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        if isinstance(self.decoded, np.ndarray):
            return self.decoded.shape[1], self.decoded.shape[0]
        return self.decoded.size


def open_rgb(content: bytes, name: str, *, max_pixels: int) -> Image.Image:
    """The image of `read_image`."""
    return read_image(content, name, max_pixels=max_pixels).image


def read_image(content: bytes, name: str, *, max_pixels: int) -> DecodedImage:
    """Decode a PNG, JPEG or WebP file, which messages call `name`: sRGB, upright, on white.

    Colours are converted by the file's ICC profile, or a PNG's cICP, gAMA and cHRM chunks, and
    then put on white. A profile of no use is ignored. Images of more than `max_pixels` are refused
    from their header, before decoding.

    Raises:
        UserError: Another format, damaged, or too large.
    """
    if _plain_size(content, name, max_pixels) is not None:
        pixels = _decode_plain(content)
        if pixels is not None:
            return DecodedImage(pixels, frozenset())
    return _read_by_pillow(content, name, max_pixels)


def _read_by_pillow(content: bytes, name: str, max_pixels: int) -> DecodedImage:
    notes: set[ImageNote] = set()
    try:
        image, content = _opened(content, notes)
        _check_size(*image.size, name, max_pixels)
        return DecodedImage(_shown(image, content, notes), frozenset(notes))
    except _BOMBS as error:
        raise UserError(f"{name}: too many pixels ({error}); shrink or drop the image") from error
    except UnidentifiedImageError as error:  # its text has the address of an object
        raise UserError(
            f"{name}: not a readable PNG, JPEG or WebP image (unknown header); replace or drop it"
        ) from error
    except _DAMAGE as error:
        raise UserError(
            f"{name}: not a readable PNG, JPEG or WebP image ({error}); replace or drop it"
        ) from error


def upright_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of an image file as it is shown, from its header; raises as `open_rgb`."""
    plain = jpeg.plain_size(content)
    if plain is not None:
        return plain
    try:
        image, _ = _opened(content, set())
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION_TAG) in _ON_ITS_SIDE
    except _BOMBS as error:
        raise UserError(f"{name}: too many pixels ({error}); shrink or drop the image") from error
    except _DAMAGE as error:
        raise UserError(f"{name}: not a readable image ({error}); replace or drop it") from error
    return (height, width) if turned else (width, height)


def extension_of(content: bytes) -> str | None:
    """`png`, `jpg` or `webp`, from the file's signature."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return None


def square(image: Image.Image, config: ImageConfig) -> NDArray[np.uint8]:
    """Pad or crop an RGB image to a square and resize it: (size, size, 3) uint8."""
    return _cut(image, config.view.frame(*image.size), config.filter)


def decode(content: bytes, config: ImageConfig, name: str) -> NDArray[np.uint8]:
    """Decode an image file into (size, size, 3) uint8; raises as `open_rgb`."""
    return decode_view(content, config, name, config.view)[0]


def decode_view(
    content: bytes, config: ImageConfig, name: str, view: View
) -> tuple[NDArray[np.uint8], SizeCondition]:
    """Decode an image file into (height, width, 3) uint8 of a view; raises as `open_rgb`."""
    size = _plain_size(content, name, config.max_pixels)
    scaled = size is not None and config.scaled_decoding and view.frame(*size).scale > _SCALED
    pixels = None
    if size is not None:
        pixels = _decode_plain(content, *(_least_size(view, *size) if scaled else (0, 0)))
    if size is None or pixels is None:
        image = _read_by_pillow(content, name, config.max_pixels).image
        frame = view.frame(*image.size)
        return _cut(image, frame, config.filter), SizeCondition.of(frame, *image.size)
    frame = view.frame(*size)
    if scaled:
        pixels = _cut_scaled(pixels, size, config.filter, view)
    elif not frame.is_image(*size):
        pixels = _cut(Image.fromarray(pixels), frame, config.filter)
    return pixels, SizeCondition.of(frame, *size)


def _cut(image: Image.Image, frame: Frame, filter_name: Filter) -> NDArray[np.uint8]:
    """(height, width, 3) of the frame's part of an RGB image; white beside the image."""
    canvas = image
    if frame.canvas.width > image.width or frame.canvas.height > image.height:
        canvas = Image.new("RGB", frame.canvas, "white")
        canvas.paste(image, (-frame.left, -frame.top))
    elif frame.canvas != image.size:
        right, bottom = frame.left + frame.canvas.width, frame.top + frame.canvas.height
        canvas = image.crop((frame.left, frame.top, right, bottom))
    if canvas.size != frame.resized:
        canvas = canvas.resize(frame.resized, _FILTERS[filter_name])
    if frame.resized != frame.shape:
        right, bottom = frame.x + frame.shape.width, frame.y + frame.shape.height
        canvas = canvas.crop((frame.x, frame.y, right, bottom))
    return np.asarray(canvas)


def _plain_size(content: bytes, name: str, max_pixels: int) -> tuple[int, int] | None:
    """Width and height of a JPEG file that needs no conversion; raises as `read_image`.

    None: it has colours, metadata or damage that Pillow is needed for.
    """
    size = jpeg.plain_size(content)
    if size is not None:
        _check_size(*size, name, max_pixels)
    return size


def _decode_plain(
    content: bytes, least_width: int = 0, least_height: int = 0
) -> NDArray[np.uint8] | None:
    """(H, W, 3) of a plain JPEG file by libjpeg-turbo alone, as Pillow's values, in less time.

    With a least width and height, it may be decoded at some eighths of its size that are at least
    that. None: it is damaged.
    """
    try:
        return simplejpeg.decode_jpeg(
            content, "RGB", min_width=least_width, min_height=least_height
        )
    except ValueError:
        return None


def _least_size(view: View, width: int, height: int) -> tuple[int, int]:
    """The width and height that a large image is decoded at, at least."""
    scale = view.frame(width, height).scale / _SCALED
    return math.ceil(width / scale - _ROUNDING), math.ceil(height / scale - _ROUNDING)


def _cut_scaled(
    pixels: NDArray[np.uint8], size: tuple[int, int], filter_name: Filter, view: View
) -> NDArray[np.uint8]:
    """About what `_cut` makes of an image of this size, decoded at a fraction of it."""
    width, height = size
    frame = view.frame(width, height)
    scale = round(8 * pixels.shape[1] / width) / 8
    if view.fit == "pad":
        _cover_partly(pixels[-1], height * scale % 1)
        _cover_partly(pixels[:, -1], width * scale % 1)
    image = Image.fromarray(pixels)
    box = [scale * each for each in frame.box]
    # the canvas is the image, and what of the box is beside it
    x, y = (max(0, math.ceil(-each)) for each in box[:2])
    right, bottom = (
        math.ceil(max(end, side)) for end, side in zip(box[2:], image.size, strict=True)
    )
    canvas = image
    if view.fit == "pad":
        canvas = Image.new("RGB", (right + x, bottom + y), "white")
        canvas.paste(image, (x, y))
    left, top = max(box[0] + x, 0), max(box[1] + y, 0)
    inside = (left, top, min(box[2] + x, canvas.width), min(box[3] + y, canvas.height))
    return np.asarray(canvas.resize(view.shape, _FILTERS[filter_name], inside))


def _cover_partly(edge: NDArray[np.uint8], part: float) -> None:
    """Put the last row or column of a scaled image, of which it covers a part, on white."""
    if part:
        edge[:] = np.rint(255 - (255.0 - edge) * part).astype(np.uint8)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UserError(
            f"{name}: {width} x {height} pixels are more than data.image.max_pixels "
            f"({max_pixels:,}); shrink or drop the image, or raise the limit"
        )


def _opened(content: bytes, notes: set[ImageNote]) -> tuple[Image.Image, bytes]:
    """An image before decoding; one that a damaged profile keeps from opening goes without it."""
    try:
        return Image.open(io.BytesIO(content), formats=_FORMATS), content
    except _DAMAGE:
        rest = content
        if png.is_png(content):
            rest = png.without_profile(content)
        elif jpeg.is_jpeg(content):
            rest = jpeg.without_profile(content)
        if rest is content:
            raise
        image = Image.open(io.BytesIO(rest), formats=_FORMATS)
        notes.add(ImageNote.PROFILE_IGNORED)
        return image, rest


def _shown(image: Image.Image, content: bytes, notes: set[ImageNote]) -> Image.Image:
    """An opened image in sRGB, upright, on white; adds to `notes`."""
    if getattr(image, "n_frames", 1) > 1:
        notes.add(ImageNote.FIRST_FRAME)
    depth = png.bit_depth(content) if png.is_png(content) else 8
    image.load()
    profile = _profile(image, content, notes)
    if depth == 16:
        rgb = _on_white(_from_16_bit(content, profile, notes), notes)
    else:
        if depth < 8 and image.mode == "L" and "transparency" in image.info:
            # Pillow scales the levels to 8 bits, but not the transparent one.
            highest = 2**depth - 1
            image.info["transparency"] = (image.info["transparency"] & highest) * (255 // highest)
        rgb = _on_white(_in_srgb(image, profile, notes), notes)
    return _upright(rgb, image, notes)


def _profile(image: Image.Image, content: bytes, notes: set[ImageNote]) -> bytes | None:
    """The ICC profile that describes an image's colours; None: they are sRGB."""
    profile: bytes | None = image.info.get("icc_profile")
    if not profile and "icc_profile" in image.info:  # a part is missing, or not to be decompressed
        notes.add(ImageNote.PROFILE_IGNORED)
    if not png.is_png(content):
        return profile
    try:
        return png.profile_of_chunks(content, profile)
    except InvalidProfileError:
        notes.add(ImageNote.PROFILE_IGNORED)
        return profile


def _conversion(profile: bytes | None, mode: str, notes: set[ImageNote]) -> Conversion | None:
    """The conversion to sRGB; None if there is nothing to do, or no profile to do it by."""
    convert = None
    if profile:
        try:
            convert = to_srgb(profile, mode)
        except InvalidProfileError:
            notes.add(ImageNote.PROFILE_IGNORED)
    if convert is not None:
        notes.add(ImageNote.CONVERTED)
    elif mode == "CMYK":
        notes.add(ImageNote.CMYK)
    return convert


def _in_srgb(image: Image.Image, profile: bytes | None, notes: set[ImageNote]) -> Image.Image:
    """An image of at most 8 bits per channel as sRGB, in mode RGB or RGBA."""
    mode = _COLOUR_MODES.get(image.mode, "RGB")
    convert = _conversion(profile, mode, notes)
    transparent = image.has_transparency_data
    if convert is None:
        target = "RGBA" if transparent else "RGB"
        return image if image.mode == target else image.convert(target)
    if not transparent:
        return convert(image.convert(mode))
    image = image.convert("LA" if mode == "L" else "RGBA")
    rgb = convert(image.convert(mode))
    rgb.putalpha(image.getchannel("A"))
    return rgb


def _from_16_bit(content: bytes, profile: bytes | None, notes: set[ImageNote]) -> Image.Image:
    """A PNG file of 16 bits per channel as sRGB, in mode RGB or RGBA."""
    colours, alpha = png.pixels_16_bit(content)
    convert = _conversion(profile, "L" if colours.shape[2] == 1 else "RGB", notes)
    array = convert_16_bit(colours, convert)
    rgb = Image.fromarray(np.broadcast_to(array, (*array.shape[:2], 3)))
    if alpha is not None:
        rgb.putalpha(Image.fromarray(convert_16_bit(alpha[..., None], None)[..., 0]))
    return rgb


def _on_white(image: Image.Image, notes: set[ImageNote]) -> Image.Image:
    if image.mode != "RGBA":
        return image
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    notes.add(ImageNote.ON_WHITE)
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return canvas.convert("RGB")


def _upright(rgb: Image.Image, image: Image.Image, notes: set[ImageNote]) -> Image.Image:
    """Turned as the EXIF of the file's image says, or its XMP if EXIF has no orientation."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except _DAMAGE:
        notes.add(ImageNote.EXIF_IGNORED)
        return rgb
    if not isinstance(orientation, int) or orientation not in _UPRIGHT:
        return rgb
    notes.add(ImageNote.UPRIGHT)
    return rgb.transpose(_UPRIGHT[orientation])
