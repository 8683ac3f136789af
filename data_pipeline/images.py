"""Decoding image files into square RGB arrays."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data_pipeline.config import ImageConfig
from mezzotint.common.errors import UserError

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
"""Member extensions of images, in order of preference."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
}
# Exceptions of Pillow's decoders on damaged files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def open_rgb(content: bytes, name: str, *, max_pixels: int) -> Image.Image:
    """Decode a PNG, JPEG or WebP file, which messages call `name`: RGB, upright, on white.

    Images of more than `max_pixels` are refused from their header, before decoding.

    Raises:
        UserError: Another format, damaged, or too large.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise UserError(
                f"{name}: {width} x {height} pixels are more than data.image.max_pixels "
                f"({max_pixels:,}); shrink or drop the image, or raise the limit"
            )
        return _on_white(ImageOps.exif_transpose(image))
    except _BOMBS as error:
        raise UserError(f"{name}: too many pixels ({error}); shrink or drop the image") from error
    except _DAMAGE as error:
        raise UserError(
            f"{name}: not a readable PNG, JPEG or WebP image ({error}); replace or drop it"
        ) from error


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
    match config.fit:
        case "pad":
            side = max(image.size)
            canvas = Image.new("RGB", (side, side), "white")
            canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        case "crop":
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            canvas = image.crop((left, top, left + side, top + side))
    if side != config.size:
        canvas = canvas.resize((config.size, config.size), _FILTERS[config.filter])
    return np.asarray(canvas)


def decode(content: bytes, config: ImageConfig, name: str) -> NDArray[np.uint8]:
    """Decode an image file into (size, size, 3) uint8; raises as `open_rgb`."""
    return square(open_rgb(content, name, max_pixels=config.max_pixels), config)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # 16-bit grey, which Pillow's own conversion clips at 255
        grey = np.asarray(image, dtype=np.uint16) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return canvas.convert("RGB")
