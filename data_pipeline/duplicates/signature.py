"""What an image looks like in 80 bytes, and how far two images are apart."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRADIENT_BITS = 256
GRADIENT_BYTES = GRADIENT_BITS // 8
COLOUR_BYTES = 4 * 4 * 3
BANDS = 8
"""Parts of the gradient bits: two images that differ in fewer bits than there are bands have the
same bits in one of them."""

_SIDE = 16
_STEP = 2
"""Grey levels by which a pixel is lighter than the one left of it, at least: even parts of an image
have no gradient, whatever its compression adds."""
_ORDER = np.arange(GRADIENT_BITS) * 97 % GRADIENT_BITS
"""Of the bits: so every band has some of all parts of the image."""


def signature(image: Image.Image) -> NDArray[np.uint8]:
    """Of an RGB image, (80,): 256 bits of a difference hash, then colours of 4 x 4 parts.

    Bit (y, x) says whether a pixel of the grey image, resized to 17 x 16, is lighter than the one
    left of it.
    """
    grey = image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    levels = np.asarray(grey, dtype=np.int16)
    bits = (levels[:, 1:] - levels[:, :-1] >= _STEP).reshape(-1)
    colours = np.asarray(image.resize((4, 4), Image.Resampling.BOX)).reshape(-1)
    return np.concatenate([np.packbits(bits[_ORDER]), colours])


def apart(
    one: NDArray[np.uint8], others: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Different bits, and the largest difference of a colour, between a signature and n others."""
    bits = np.bitwise_count(one[:GRADIENT_BYTES] ^ others[:, :GRADIENT_BYTES]).sum(axis=1)
    colours = np.abs(one[GRADIENT_BYTES:].astype(int) - others[:, GRADIENT_BYTES:])
    return bits.astype(np.int64), colours.max(axis=1)
