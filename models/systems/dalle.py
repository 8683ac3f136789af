"""DALL-E: the prior draws codes, the dVAE decodes them, CLIP ranks them (arXiv 2102.12092).

Any autoencoder with one codebook can stand where the dVAE does, as a VQ-GAN in arXiv 2012.09841.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from models.autoencoders.protocols import DiscreteAutoencoder
from models.autoregressive.decoding import Sampling, generate
from models.autoregressive.prior import Prior
from models.clip import ImageText

Progress = Callable[[int, int], None]
"""Called with the codes drawn so far and their total."""


@dataclass(frozen=True)
class DalleSamples:
    """`N` candidates for each of `B` captions, in the order they were drawn."""

    images: Tensor
    """(B, N, 3, H, W) in [-1, 1]."""
    codes: Tensor
    """(B, N, h, w) int64."""
    scores: Tensor | None
    """(B, N): cosine of image and caption, or None without a CLIP."""
    ranking: Tensor
    """(B, N) int64: candidates from best to worst; the order of drawing without a CLIP."""

    def best(self) -> Tensor:
        """The first of the ranking: (B, 3, H, W)."""
        return self.images[torch.arange(len(self.images)), self.ranking[:, 0]]

    def best_of(self, count: int) -> Tensor:
        """The first `count` of the ranking, best first: (B, count, 3, H, W)."""
        rows = torch.arange(len(self.images), device=self.ranking.device)[:, None]
        return self.images[rows, self.ranking[:, :count]]


class Dalle:
    """Prior, autoencoder and, for re-ranking, a CLIP."""

    def __init__(
        self, prior: Prior, dvae: DiscreteAutoencoder, clip: ImageText | None = None
    ) -> None:
        """Compose; refuses a prior over another codebook or grid.

        Raises:
            UserError: the autoencoder has no codes, or the prior's image_vocab or grid is not its.
        """
        vocab = dvae.vocabularies().get("codes")
        if vocab is None:
            raise UserError("the autoencoder's latent is continuous; a prior draws codes")
        if prior.config.image_vocab != vocab or prior.config.grid != dvae.grid:
            raise UserError(
                f"the prior draws {prior.config.grid} codes of {prior.config.image_vocab} and the "
                f"dvae has {dvae.grid} of {vocab}; use the dvae that made the prior's training "
                "tokens"
            )
        self.prior, self.dvae, self.clip = prior, dvae, clip

    @torch.no_grad()
    def sample(
        self,
        text: Tensor,
        clip_text: Tensor | None,
        rng: Generator,
        *,
        candidates: int,
        sampling: Sampling,
        top: Tensor | None = None,
        progress: Progress | None = None,
    ) -> DalleSamples:
        """`candidates` pictures for each caption (B, T), ranked by CLIP.

        `clip_text` holds the same captions as tokens of the CLIP's tokenizer, (B, L). `top` gives
        the codes (B, r, w) of the upper rows, which are kept (see `top_of`).

        Raises:
            UserError: a CLIP without `clip_text`, or `top` is wider or higher than a picture.
        """
        count = len(text)
        rows = text.repeat_interleave(candidates, dim=0)
        prefix = None if top is None else self._known(top).repeat_interleave(candidates, dim=0)
        drawn = generate(self.prior, rows, rng, sampling=sampling, prefix=prefix, progress=progress)
        pictures = self.dvae.decode_tokens(drawn.view(-1, *self.dvae.grid))
        images = pictures.view(count, candidates, *pictures.shape[1:])
        codes = drawn.view(count, candidates, *self.dvae.grid)
        if self.clip is None:
            order = torch.arange(candidates, device=text.device).expand(count, -1)
            return DalleSamples(images, codes, None, order)
        if clip_text is None:
            raise UserError("re-ranking needs the captions as tokens of the CLIP's tokenizer")
        scores = clip_scores(self.clip, images, clip_text)
        return DalleSamples(images, codes, scores, ranked(scores))

    @torch.no_grad()
    def top_of(self, image: Tensor, rows: int) -> Tensor:
        """Codes (B, rows, w) of the upper rows of images (B, 3, H, W) in [-1, 1].

        With them `sample` completes a picture from its upper part (arXiv 2102.12092, figure 2d).

        Raises:
            UserError: the grid has not that many rows.
        """
        height = self.dvae.grid[0]
        if not 0 <= rows <= height:
            raise UserError(f"the grid of codes has {height} rows; {rows} of them cannot be kept")
        return self.dvae.tokens(image)[:, :rows]

    def _known(self, top: Tensor) -> Tensor:
        height, width = self.dvae.grid
        if top.shape[1] > height or top.shape[2] != width:
            raise UserError(
                f"the known codes are {top.shape[1]} rows of {top.shape[2]}, and the grid has "
                f"{height} of {width}"
            )
        return top.flatten(1)


def clip_scores(clip: ImageText, images: Tensor, clip_text: Tensor) -> Tensor:
    """Cosines (B, N) of candidates (B, N, 3, H, W) with their captions (B, L)."""
    features = clip.encode_image(images.flatten(0, 1)).view(*images.shape[:2], -1)
    return torch.einsum("bnd,bd->bn", features, clip.encode_text(clip_text))


def ranked(scores: Tensor) -> Tensor:
    """Indices (B, N) from best to worst; equal scores keep the order of drawing."""
    return scores.argsort(dim=1, descending=True, stable=True)
