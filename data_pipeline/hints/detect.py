"""Making hints from images."""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.hints.config import Colours, DetectorConfig, Edges, Scribble, Silhouette, Sobel
from data_pipeline.hints.opencv import opencv

Levels = NDArray[np.uint8]


def detect(detector: DetectorConfig, image: Levels) -> Levels:
    """The hint of an RGB image (H, W, 3): levels (H, W, channels)."""
    found: Levels
    match detector:
        case Edges():
            found = _canny(_blurred(image, detector.blur), detector.low, detector.high)
        case Sobel():
            found = _sobel(image, detector)
        case Silhouette():
            found = _silhouette(image, detector.tolerance)
        case Colours():
            found = _colours(image, detector.cells)
        case Scribble():
            found = _scribble(image, detector)
    return found.reshape(*image.shape[:2], detector.channels)


def hint_of(detector: DetectorConfig, image: Levels) -> NDArray[np.float32]:
    """The hint of an RGB image (H, W, 3): (channels, H, W) in [0, 1]."""
    levels = detect(detector, image).transpose(2, 0, 1)
    return np.ascontiguousarray(levels, dtype=np.float32) / np.float32(255)


def encoded(levels: Levels) -> bytes:
    """Levels (H, W, 1 or 3) as a PNG file."""
    cv2 = opencv()
    found, content = cv2.imencode(".png", np.ascontiguousarray(levels[..., ::-1]))
    assert found, "PNG takes levels of any size"
    return bytes(content)


def _blurred(image: Levels, sigma: float) -> Levels:
    if sigma == 0:
        return np.ascontiguousarray(image)
    cv2 = opencv()
    return _levels(cv2.GaussianBlur(image, (0, 0), sigma))


def _canny(image: Levels, low: int, high: int) -> Levels:
    """At each pixel the gradient of the colour that has the largest one."""
    cv2 = opencv()
    return _levels(cv2.Canny(image, low, high))


def _sobel(image: Levels, config: Sobel) -> Levels:
    cv2 = opencv()
    smooth = _blurred(image, config.blur).astype(np.float32)
    across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    gradient = np.hypot(across, down).max(axis=2) / 4  # 4 times the step, summed over 3 rows
    return np.clip(np.rint(gradient * config.gain), 0, 255).astype(np.uint8)


def _silhouette(image: Levels, tolerance: int) -> Levels:
    cv2 = opencv()
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    difference = np.abs(image.astype(np.int16) - np.median(border, axis=0)).max(axis=2)
    plain = (difference <= tolerance).astype(np.uint8)
    _, regions = cv2.connectedComponents(plain, connectivity=4)
    edge = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    background = np.isin(regions, edge[edge > 0])
    return np.where(background, 0, 255).astype(np.uint8)


def _colours(image: Levels, cells: int) -> Levels:
    cv2 = opencv()
    height, width = image.shape[:2]
    grid = cv2.resize(image, (min(cells, width), min(cells, height)), interpolation=cv2.INTER_AREA)
    return _levels(cv2.resize(grid, (width, height), interpolation=cv2.INTER_NEAREST))


def _scribble(image: Levels, config: Scribble) -> Levels:
    cv2 = opencv()
    side = max(image.shape[:2])
    edges = _canny(_blurred(image, config.blur * side), config.low, config.high)
    lines, _ = cv2.findContours(edges, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    drawn = np.zeros(image.shape[:2], np.uint8)
    # a contour runs around the line, along both of its sides
    shortest = 2 * config.shortest * side
    strokes = [line for line in lines if cv2.arcLength(line, closed=True) >= shortest]
    pieces = [cv2.approxPolyDP(line, config.simplify * side, closed=True) for line in strokes]
    thickness = max(1, round(config.thickness * side))
    cv2.polylines(drawn, pieces, isClosed=True, color=255, thickness=thickness)
    return drawn


def _levels(array: object) -> Levels:
    return np.asarray(array, dtype=np.uint8)
