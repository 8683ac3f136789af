"""Sampling of CLIP image embeddings from a prior: range, and the best of several."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mezzotint.common.embedding_scaling import OPENAI_SCALE, EmbeddingScaling
from models.diffusion.thresholding import (
    NormThresholding,
    RangeThresholding,
    ThresholdingConfig,
)

DEVIATIONS = 10.0
"""Range of normalised values in Karlo's sampling, in standard deviations."""


def embedding_thresholding(scaling: EmbeddingScaling) -> ThresholdingConfig:
    """What keeps a prediction of x_0 in the range of normalised embeddings.

    Where each dimension has deviation 1, a value beyond 10 deviations is an error of guidance,
    which Karlo cuts off. Where embeddings are directions of one length, values have no range of
    their own, but their mean given x_t, which the network predicts, lies within that sphere:
    guidance alone can leave it, and is brought back to the sphere.
    """
    match scaling.kind:
        case "mean_std":
            return RangeThresholding(limit=DEVIATIONS)
        case "openai_17.2":
            return NormThresholding(limit=OPENAI_SCALE)
        case "l2_sqrt_d":
            return NormThresholding(limit=math.sqrt(scaling.dim))


def best_match(candidates: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
    """The candidate (B, D) of each caption, of (B, K, D), that is most similar to it (B, D).

    By the cosine (unCLIP, arXiv 2204.06125, 2.2: the better of two samples). Returns its number
    (B,) too.
    """
    cosines = F.cosine_similarity(candidates.float(), captions.float()[:, None], dim=-1)
    best = cosines.argmax(dim=1)
    return candidates[torch.arange(len(best), device=best.device), best], best
