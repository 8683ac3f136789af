"""CPU-optimised kernels: networks call `dispatch`, whose default is plain torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Piece = Literal[
    "winograd",
    "one_image",
    "products",
    "group_norm",
    "lean_convolution",
    "short_attention",
    "decode_attention",
    "avx512",
    "mkldnn_linear",
    "decoder",
]
"""The pieces that can be switched off; README.md in this directory describes each."""
PIECES: tuple[Piece, ...] = get_args(Piece)

IS_INTEL = "Intel" in str(torch.cpu.get_capabilities().get("cpu_name"))
"""Whether torch's products are MKL's with its kernels for this machine's CPU."""

_disabled: frozenset[Piece] = frozenset()


def is_enabled(piece: Piece) -> bool:
    """Whether a piece may be used where it is supported."""
    return piece not in _disabled


@contextmanager
def plain_torch(*pieces: Piece) -> Iterator[None]:
    """Use plain torch instead of these pieces, or of all: to test and to measure them.

    The choice holds for all threads. A decoder keeps what it chose when it was made.
    """
    global _disabled
    before = _disabled
    _disabled = before | set(pieces or PIECES)
    try:
        yield
    finally:
        _disabled = before
