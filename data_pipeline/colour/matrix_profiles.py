"""ICC profiles of colour spaces that are given by primaries and a tone curve."""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
"""CIE 1931 x and y."""

_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


@dataclass(frozen=True)
class Primaries:
    """Chromaticities of an RGB space."""

    red: Point
    green: Point
    blue: Point
    white: Point


@dataclass(frozen=True)
class Curve:
    """From encoded to linear values: a power, or sRGB's curve."""

    exponent: float | None
    """None: sRGB's curve."""


SRGB = Primaries((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290))


def rgb_profile(primaries: Primaries, curve: Curve) -> bytes:
    """The ICC profile of an RGB space.

    Raises:
        ValueError: The primaries are no triangle, or there is no white.
    """
    columns = _matrix(primaries).T
    tags = {f"{name}XYZ": _xyz(column) for name, column in zip("rgb", columns, strict=True)}
    tags |= {f"{name}TRC": _parametric(curve) for name in "rgb"}
    return _profile(b"RGB ", tags)


def grey_profile(curve: Curve) -> bytes:
    """The ICC profile of a grey space."""
    return _profile(b"GRAY", {"kTRC": _parametric(curve)})


def _matrix(primaries: Primaries) -> NDArray[np.float64]:
    """Linear RGB to XYZ relative to D50 (Bradford adaptation): (3, 3)."""
    points = [_to_xyz(point) for point in (primaries.red, primaries.green, primaries.blue)]
    columns, white = np.stack(points, axis=1), _to_xyz(primaries.white)
    try:
        scaled = columns * np.linalg.solve(columns, white)
    except np.linalg.LinAlgError as error:
        raise ValueError("the primaries lie on one line") from error
    gains = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    adapted = np.linalg.solve(_BRADFORD, gains[:, None] * (_BRADFORD @ scaled))
    if not np.isfinite(adapted).all() or np.abs(adapted).max() > 8:
        raise ValueError("the primaries span no colour space")
    return np.asarray(adapted)


def _to_xyz(point: Point) -> NDArray[np.float64]:
    x, y = point
    if y <= 0:
        raise ValueError(f"a chromaticity of y = {y}")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _fixed(value: float) -> int:
    """The signed 16.16 number."""
    return round(value * 65536)


def _xyz(value: NDArray[np.float64]) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *(_fixed(one) for one in value.tolist()))


def _parametric(curve: Curve) -> bytes:
    parameters = _SRGB_CURVE if curve.exponent is None else (curve.exponent,)
    function = 3 if curve.exponent is None else 0
    values = [_fixed(one) for one in parameters]
    return struct.pack(f">4s4xHxx{len(values)}i", b"para", function, *values)


def _profile(space: bytes, tags: dict[str, bytes]) -> bytes:
    """A display profile of version 4.3 (ICC.1:2010, section 7)."""
    tags = {"wtpt": _xyz(_D50), **tags}
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name.encode(), start + len(data), len(tag))
        data += tag.ljust(-(-len(tag) // 4) * 4, b"\0")
    size = start + len(data)
    header = struct.pack(
        ">I4sI4s4s4s12x4s", size, b"", 0x04300000, b"mntr", space, b"XYZ ", b"acsp"
    )
    header = header.ljust(68, b"\0") + struct.pack(">3i", *(_fixed(one) for one in _D50.tolist()))
    return header.ljust(128, b"\0") + table + data
