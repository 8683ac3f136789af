"""The autoregressive prior of unCLIP (arXiv 2204.06125, 2.2): codes of CLIP image embeddings."""

from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from models.autoregressive.chunked_cross_entropy import chunked_cross_entropy
from models.autoregressive.decoding import Sampling, sample_token
from models.autoregressive.embedding_codec import EmbeddingCodec
from models.checks import require_multiple
from models.finite import require_finite
from models.nn import initialization
from models.nn.clip_captions import ClipCaption, caption_embedding, caption_tokens
from models.nn.embedding import LearnedPositionEmbedding
from models.nn.prefix import Packing, PrefixCache, follow
from models.nn.random import uniform
from models.nn.transformer import Block


class TokenFeaturesConfig(BaseModel, frozen=True, extra="forbid"):
    """Features of captions from a CLIP's text tower."""

    width: int = Field(gt=0)


class EmbeddingPriorConfig(BaseModel, frozen=True, extra="forbid"):
    """The paper's has 319 components of embeddings of 1024 values, in 1,024 buckets."""

    kind: Literal["embedding_prior"] = "embedding_prior"
    dim: int = Field(gt=0)
    """Size of an embedding, of images and captions alike."""
    components: int = Field(default=319, gt=0)
    """Principal components that are predicted, one after the other; the others become their mean.
    """
    buckets: int = Field(default=1024, gt=1)
    levels: int = Field(default=64, gt=1)
    """Levels of similarity between image and caption."""
    features: TokenFeaturesConfig
    length: int = Field(gt=0)
    """Tokens of a caption's features."""
    width: int = Field(default=2048, gt=0)
    layers: int = Field(default=24, gt=0)
    heads: int = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        require_multiple("width", self.width, "heads", self.heads)
        if self.components > self.dim:
            raise ValueError(f"components: embeddings of dim {self.dim} have no more than that")
        if self.levels % 2:
            raise ValueError("levels must be even: samples take the upper half")
        return self

    def build(self) -> "EmbeddingPrior":
        return EmbeddingPrior(self)


class EmbeddingPrior(nn.Module):
    """A causal transformer over [caption's tokens, caption's embedding, level, codes].

    From the level on, the output at a position predicts the next code. Padding tokens are left
    out. Dropout takes torch's global generator, in training mode only.
    """

    def __init__(self, config: EmbeddingPriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.codec = EmbeddingCodec(config.dim, config.components, config.buckets, config.levels)
        self.features = nn.Linear(config.features.width, width)
        self.caption = nn.Linear(config.dim, width)
        self.level = nn.Embedding(config.levels, width)
        self.code = nn.Embedding(config.buckets, width)
        self.position = LearnedPositionEmbedding(config.length + 1 + config.components, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                width // config.heads,
                causal=True,
                dropout=config.dropout,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.buckets)
        for embedding in (self.level, self.code):
            initialization.normal(embedding.weight, 0.02)
        initialization.normal(self.head.weight, 0.02)

    def forward(self, caption: ClipCaption, level: Tensor, codes: Tensor) -> Tensor:
        """Mean cross-entropy in nats per code, in fp32, of codes (B, components) at levels (B,).

        Raises:
            UserError: captions lack features or embeddings, or their size is another one.
        """
        return chunked_cross_entropy(self.head, self.hidden(caption, level, codes), codes)

    def logits(self, caption: ClipCaption, level: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced logits (B, components, buckets) in fp32."""
        return self.head(self.hidden(caption, level, codes)).float()

    def hidden(self, caption: ClipCaption, level: Tensor, codes: Tensor) -> Tensor:
        """Outputs (B, components, width) at the positions that predict codes, normalised."""
        packing = Packing.of(caption.mask)
        prefix = self._prefix(caption, level)
        tail = torch.cat([prefix, self._codes(codes[:, :-1], 0)], dim=1)
        tokens = self._tokens(caption, packing)
        sequence = (
            torch.cat([tokens, tail], dim=1) if packing is None else packing.join(tokens, tail)
        )
        for block in self.blocks:
            sequence = block(sequence)
        count = self.config.components
        found = sequence[:, -count:] if packing is None else packing.after(sequence, 1, count)
        return self.norm(found)

    def start(self, caption: ClipCaption, level: Tensor) -> tuple[list[PrefixCache], Tensor]:
        """Caches of captions and levels, and logits (B, buckets) of the first code."""
        packing = Packing.of(caption.mask)
        tokens, prefix = self._tokens(caption, packing), self._prefix(caption, level)
        sequence = (
            torch.cat([tokens, prefix], dim=1) if packing is None else packing.join(tokens, prefix)
        )
        caches = [PrefixCache(self.config.components) for _ in self.blocks]
        for block, cache in zip(self.blocks, caches, strict=True):
            sequence = block(sequence, cache)
        last = sequence[:, -1:] if packing is None else packing.after(sequence, 1, 1)
        return caches, self.head(self.norm(last[:, 0]))

    def follow(
        self, code: Tensor, place: int, caches: list[PrefixCache], mask: Tensor | None
    ) -> Tensor:
        """Logits (B, buckets) of the code after the one (B,) at `place`.

        `mask` (B, prefix) is -inf where a position of the prefix is not read.
        """
        x = self._codes(code[:, None], place)
        bias = x.new_zeros(len(x), caches[0].filled + 1, dtype=caches[0].dtype)
        if mask is not None:
            bias[:, : mask.shape[1]] = mask
        for block, cache in zip(self.blocks, caches, strict=True):
            assert isinstance(block, Block), "as it was built"
            x = follow(block, x, cache, bias[:, None, None], 1)
            cache.keep(1)
        return self.head(self.norm(x[:, 0]))

    def _tokens(self, caption: ClipCaption, packing: Packing | None) -> Tensor:
        return caption_tokens(caption, self.features, self.position, self.config.length, packing)

    def _prefix(self, caption: ClipCaption, level: Tensor) -> Tensor:
        """The positions of the caption's embedding and the level: (B, 2, width)."""
        embedding = caption_embedding(caption, self.config.dim)
        vector = self.caption(embedding.to(self.caption.weight.dtype))
        first = self.config.length
        return torch.stack([vector, self.level(level)], dim=1) + self.position(first, first + 2)

    def _codes(self, codes: Tensor, place: int) -> Tensor:
        """Codes (B, n) at the places from `place` on: (B, n, width)."""
        first = self.config.length + 2 + place
        return self.code(codes) + self.position(first, first + codes.shape[1])


def similarity(image: Tensor, caption: Tensor) -> Tensor:
    """The cosine (B,) of embeddings (B, D)."""
    return F.cosine_similarity(image.float(), caption.float(), dim=-1)


@torch.no_grad()
def generate_embeddings(
    prior: EmbeddingPrior,
    caption: ClipCaption,
    rng: Generator,
    sampling: Sampling,
    *,
    empty: ClipCaption | None = None,
    level: Tensor | None = None,
) -> Tensor:
    """Normalised embeddings (B, D) for captions.

    `empty`, as many empty captions, is the unconditional side of guidance. The level is one of the
    upper half by default, so of pairs that are more similar than most (the paper, 2.2); it is the
    same on both sides.

    Raises:
        UserError: a prior that was not trained, or guidance without empty captions.
        NonFiniteError: logits are not finite.
    """
    config = prior.config
    if not prior.codec.is_measured:
        raise UserError("this embedding_prior has no components of embeddings: train it first")
    guided = sampling.guidance != 1.0
    if guided and empty is None:
        raise UserError("guidance of an embedding_prior needs empty captions")
    target = caption_embedding(caption, config.dim)
    rows, device = len(target), target.device
    if level is None:
        half = config.levels // 2
        share = uniform((rows, 1), rng, device)[:, 0]
        level = half + (share * half).long().clamp(max=half - 1)
    both = caption
    if guided and empty is not None:
        both = ClipCaption(*map(_joined, caption, empty))
        level = torch.cat([level, level])
    caches, logits = prior.start(both, level)
    mask = _unread(both.mask, caches[0].filled, caches[0].dtype)
    codes = torch.zeros(rows, config.components, dtype=torch.int64, device=device)
    checksum = torch.zeros(rows, device=device)
    for place in range(config.components):
        logits = logits.float()
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + sampling.guidance * (conditional - unconditional)
        checksum += logits.sum(dim=-1)
        code = sample_token(logits, sampling, rng)
        codes[:, place] = code
        if place + 1 < config.components:
            code = torch.cat([code, code]) if guided else code
            logits = prior.follow(code, place, caches, mask)
    require_finite("the logits of its codes are", checksum)
    return prior.codec.decode(codes)


def _joined(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Both batches as one."""
    return None if one is None or other is None else torch.cat([one, other])


def _unread(mask: Tensor | None, length: int, dtype: torch.dtype) -> Tensor | None:
    """-inf (B, length) at what `Packing` has put behind the caption, its embedding and level."""
    if mask is None:
        return None
    place = torch.arange(length, device=mask.device)
    hidden = place >= mask.sum(dim=1)[:, None] + 2
    return torch.zeros(hidden.shape, dtype=dtype, device=mask.device).masked_fill(
        hidden, -torch.inf
    )
