"""How well images follow the hints that they were generated with.

The detector that made the hints is applied to the images, and its hints are compared with those
that were given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import hypot

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.hints.config import of_record
from data_pipeline.hints.detect import hint_of
from data_pipeline.hints.opencv import opencv
from mezzotint.common.errors import UserError
from mezzotint.common.hint import Detector

TOLERANCE_SHARE = 0.0075
"""Of the diagonal of an image (BSDS500, Arbelaez et al. 2011)."""
SAME_PIXEL = "edge F1 same pixel"
_ON = 0.5
"""Value from which a pixel of a hint of lines or a silhouette is set."""
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Fidelity:
    """A score of each image, 0 to 1, of which 1 is a hint followed exactly."""

    metric: str
    """`edge F1`, `silhouette IoU` or `1 - mean absolute error`."""
    values: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.values.mean())


def control_fidelity(
    detector: Detector | None, hints: Tensor, images: Tensor, *, same_pixel: bool = False
) -> Fidelity:
    """How well images (B, 3, H, W) in [-1, 1] follow hints (B, C, H, W) in [0, 1].

    Edges and scribbles by edge F1, silhouettes by intersection over union, soft edges and colours
    by their mean absolute error. With `same_pixel` an edge counts only where the hint has it.

    Raises:
        UserError: hints that no detector made, or of another shape than the images'.
    """
    if detector is None:
        raise UserError(
            "control fidelity compares hints with what their detector finds in the samples, and "
            "these hints are a user's own: no detector is recorded"
        )
    config = of_record(detector)
    shape = (len(images), config.channels, *images.shape[2:])
    if tuple(hints.shape) != shape:
        raise UserError(
            f"hints of shape {tuple(hints.shape)} for images of {tuple(images.shape)}: hints of "
            f"{detector.kind} are {shape}"
        )
    metric, score = _METRICS[detector.kind]
    if same_pixel and score is edge_f1:
        metric, score = SAME_PIXEL, partial(edge_f1, limit=0.0)
    given = hints.detach().float().cpu().numpy()
    pairs = zip(given, pixels(images), strict=True)
    scores = [score(hint, hint_of(config, image)) for hint, image in pairs]
    return Fidelity(metric, np.array(scores, dtype=np.float64))


def pixels(images: Tensor) -> NDArray[np.uint8]:
    """Images (B, 3, H, W) in [-1, 1] as levels (B, H, W, 3)."""
    levels = images.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round()
    return np.ascontiguousarray(levels.numpy().astype(np.uint8).transpose(0, 2, 3, 1))


def tolerance(height: int, width: int) -> float:
    """Pixels that an edge may be off: 0.0075 of the diagonal, at least 1."""
    return max(1.0, TOLERANCE_SHARE * hypot(height, width))


def edge_f1(hint: Values, found: Values, limit: float | None = None) -> float:
    """F1 of edge maps (1, H, W), each within `limit` pixels of the other's nearest edge.

    `limit` is the `tolerance` where it is None.

    Precision is the share of the edge pixels found that have one of the hint near, recall the
    share of the hint's that have a found one near. 1 where both are empty.
    """
    one, other = hint[0] >= _ON, found[0] >= _ON
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    limit = tolerance(*one.shape) if limit is None else limit
    recall = float(_near(other, limit)[one].mean())
    precision = float(_near(one, limit)[other].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def intersection_over_union(hint: Values, found: Values) -> float:
    """Of two silhouettes (1, H, W); 1 where both are empty."""
    one, other = hint >= _ON, found >= _ON
    union = int((one | other).sum())
    return float((one & other).sum() / union) if union else 1.0


def closeness(hint: Values, found: Values) -> float:
    """1 - the mean absolute difference of two hints (C, H, W)."""
    return 1 - float(np.abs(hint - found).mean())


def _near(edges: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
    """The pixels whose nearest edge is at most `limit` pixels away (Euclidean)."""
    cv2 = opencv()
    distance = cv2.distanceTransform((~edges).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(np.asarray(distance) <= limit + 1e-4)


_METRICS: dict[str, tuple[str, Callable[[Values, Values], float]]] = {
    "edges": ("edge F1", edge_f1),
    "scribble": ("edge F1", edge_f1),
    "silhouette": ("silhouette IoU", intersection_over_union),
    "sobel": ("1 - mean absolute error", closeness),
    "colours": ("1 - mean absolute error", closeness),
}
