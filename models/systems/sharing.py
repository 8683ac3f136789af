"""Drawing many candidates with several processes, with a result that does not depend on how many.

All candidates of all captions are one list, cut into blocks of a fixed size. A block is drawn as a
whole with a generator of its own, so its pictures are the same whichever process draws it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from models.autoregressive.decoding import Sampling, generate
from models.systems.dalle import Dalle, DalleSamples, Progress, ranked


@dataclass(frozen=True)
class Drawn:
    """Candidates first..first+n-1 of the whole list (candidate c of caption b is b x N + c)."""

    first: int
    images: Tensor
    """(n, 3, H, W) in [-1, 1]."""
    codes: Tensor
    """(n, h, w) int64."""
    scores: Tensor | None
    """(n,), or None without a CLIP."""


def blocks(count: int, size: int, rank: int, world: int) -> tuple[range, ...]:
    """The blocks of a list of `count` that process `rank` of `world` draws: every world-th.

    Raises:
        UserError: no such process.
    """
    if not 0 <= rank < world:
        raise UserError(f"rank {rank} of {world} processes does not exist; count from 0")
    firsts = range(0, count, size)[rank::world]
    return tuple(range(first, min(first + size, count)) for first in firsts)


@torch.no_grad()
def draw_share(
    dalle: Dalle,
    text: Tensor,
    clip_text: Tensor | None,
    *,
    seed: int,
    candidates: int,
    block: int,
    sampling: Sampling,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> list[Drawn]:
    """What one process draws of `candidates` pictures for each caption (B, T).

    Every process gives the same arguments but `rank`; `assemble` joins what all of them drew. The
    result depends on `seed` and `block`, and not on `world`. `progress` hears of the codes of all
    pictures that this process draws.

    Raises:
        UserError: a CLIP without `clip_text`, or no such process.
    """
    if dalle.clip is not None and clip_text is None:
        raise UserError("re-ranking needs the captions as tokens of the CLIP's tokenizer")
    parts: list[Drawn] = []
    share = blocks(len(text) * candidates, block, rank, world)
    told = _Told(progress, dalle.prior.config.image_length, sum(map(len, share)))
    for rows in share:
        captions = torch.tensor([row // candidates for row in rows], device=text.device)
        rng = keyed_generator(seed, rows.start, device=text.device)
        codes = generate(
            dalle.prior, text[captions], rng, sampling=sampling, progress=told.of(len(rows))
        )
        codes = codes.view(-1, *dalle.dvae.grid)
        images = dalle.dvae.decode_tokens(codes)
        scores = None
        if dalle.clip is not None and clip_text is not None:
            words = dalle.clip.encode_text(clip_text[captions])
            scores = (dalle.clip.encode_image(images) * words).sum(dim=1)
        parts.append(Drawn(rows.start, images, codes, scores))
    return parts


class _Told:
    """Codes drawn of all blocks of a share, from what each block tells of its own."""

    def __init__(self, progress: Progress | None, length: int, pictures: int) -> None:
        self._progress, self._length, self._total = progress, length, length * pictures
        self._before = 0

    def of(self, pictures: int) -> Progress:
        """What the next block, of so many pictures, is to call."""
        first = self._before
        self._before += pictures * self._length

        def tell(done: int, _: int) -> None:
            if self._progress is not None:
                self._progress(first + done * pictures, self._total)

        return tell


def assemble(parts: Sequence[Drawn], captions: int, candidates: int) -> DalleSamples:
    """All blocks of all processes, in any order, as the samples of `captions` captions.

    Raises:
        UserError: blocks are missing.
    """
    ordered = sorted(parts, key=lambda part: part.first)
    found = sum(len(part.codes) for part in ordered)
    if found != captions * candidates:
        raise UserError(
            f"{found} of {captions * candidates} candidates are there; bring the blocks of all "
            "processes together"
        )
    images = torch.cat([part.images for part in ordered])
    codes = torch.cat([part.codes for part in ordered])
    scored = [part.scores for part in ordered if part.scores is not None]
    scores = torch.cat(scored).view(captions, candidates) if scored else None
    order = torch.arange(candidates, device=codes.device).expand(captions, -1)
    return DalleSamples(
        images=images.view(captions, candidates, *images.shape[1:]),
        codes=codes.view(captions, candidates, *codes.shape[1:]),
        scores=scores,
        ranking=order if scores is None else ranked(scores),
    )
