"""The diffusion prior of unCLIP (arXiv 2204.06125, 2.2): CLIP image embeddings from captions."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from mezzotint.common.embedding_scaling import EmbeddingScaling
from models.checks import require_multiple
from models.diffusion.condition import Condition
from models.diffusion.process import ProcessConfig
from models.diffusion.unet.conditions import TextFeaturesConfig
from models.nn import initialization
from models.nn.clip_captions import caption_embedding, caption_tokens
from models.nn.conditioning_cache import cached
from models.nn.embedding import LearnedPositionEmbedding, TimestepEmbedding
from models.nn.prefix import Packing, PrefixCache, follow, read_one
from models.nn.transformer import Block

NOISY = 3
"""Positions that differ from step to step: time, noisy embedding and query."""


class DiffusionPriorConfig(BaseModel, frozen=True, extra="forbid"):
    """The paper's has width 2048, 24 layers, 32 heads, dim 1024 and 256 tokens.

    Karlo's has width 2048, 20 layers, 32 heads, dim 768 and 77 tokens. The published size of
    either includes the `mean` and `std` of embeddings.
    """

    kind: Literal["diffusion_prior"] = "diffusion_prior"
    dim: int = Field(gt=0)
    """Size of an embedding, of images and captions alike."""
    features: TextFeaturesConfig
    length: int = Field(gt=0)
    """Tokens of a caption's features."""
    width: int = Field(default=2048, gt=0)
    layers: int = Field(default=20, gt=0)
    heads: int = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    process: ProcessConfig = ProcessConfig()

    @property
    def conditioning(self) -> frozenset[str]:
        return frozenset({"clip_text"})

    @model_validator(mode="after")
    def _possible(self) -> Self:
        require_multiple("width", self.width, "heads", self.heads)
        require_multiple("width", self.width, "2", 2)
        if self.process.variance != "fixed":
            raise ValueError("process.variance must be fixed: only kind unet learns it")
        return self

    def build(self) -> "DiffusionPrior":
        return DiffusionPrior(self)


class DiffusionPrior(nn.Module):
    """A causal transformer over [caption's tokens, caption's embedding, time, x_t, query].

    The output at the query is what the process predicts: x_0 by default, the normalised embedding
    of the image. Padding tokens are left out, whatever the mask, which never makes a position see
    a later one. Without gradients, keys and values of the caption are computed once per sampling
    run. Dropout takes torch's global generator, in training mode only.
    """

    def __init__(self, config: DiffusionPriorConfig) -> None:
        super().__init__()
        self.config = config
        self.process = config.process.build()
        width = config.width
        self.features = nn.Linear(config.features.width, width)
        self.caption = nn.Linear(config.dim, width)
        self.time = TimestepEmbedding(width, width, timestep_offset=1)
        self.embedding = nn.Linear(config.dim, width)
        self.query = nn.Parameter(torch.empty(width))
        self.position = LearnedPositionEmbedding(config.length + 1 + NOISY, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                width // config.heads,
                causal=True,
                dropout=config.dropout,
                gelu="none",
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.dim)
        self.mean = nn.Parameter(torch.empty(config.dim), requires_grad=False)
        """(dim,): with `std`, an embedding is mean + std x its normalised vector. They are kept
        with the weights for code that has no other place for them; the network reads neither."""
        self.std = nn.Parameter(torch.empty(config.dim), requires_grad=False)
        initialization.normal(self.query, 0.02)
        initialization.constant(self.mean, 0.0)
        initialization.constant(self.std, 1.0)

    def keep_scaling(self, scaling: EmbeddingScaling | None) -> None:
        """Store the statistics of the embeddings that it generates, where they are known.

        On the meta device they are noted until it has memory.
        """
        if scaling is None:
            return
        mean, std = statistics(scaling)
        initialization.computed(self.mean, mean.clone)
        initialization.computed(self.std, std.clone)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, dim), times (B,) in [0, 1] and captions to the raw output (B, dim), in fp32.

        Raises:
            UserError: the condition lacks a caption's features or embedding, or their size is
                another one.
        """
        if torch.is_grad_enabled() or self.training:
            return self._whole(x, t, condition)
        return self._after_prefix(x, t, condition)

    def _whole(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """All positions at once."""
        packing = Packing.of(condition.features_mask)
        tail = torch.cat([self._caption(condition), self._noisy(x, t)], dim=1)
        tokens = self._tokens(condition, packing)
        if packing is None:
            sequence, place = torch.cat([tokens, tail], dim=1), None
        else:
            sequence, place = packing.join(tokens, tail), packing.count + NOISY
        *blocks, last = self.blocks
        for block in blocks:
            sequence = block(sequence)
        assert isinstance(last, Block), "as it was built"
        return self._read(read_one(last, sequence, place))

    def _after_prefix(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The noisy positions alone, after the caption's keys and values."""
        embedding = self._embedding(condition)
        prefix = cached(self, embedding, lambda _: self._prefix(condition))
        if not prefix.is_of(condition):
            prefix = self._prefix(condition)
        sequence, last = self._noisy(x, t), len(self.blocks) - 1
        for number, (block, cache) in enumerate(zip(self.blocks, prefix.layers, strict=True)):
            assert isinstance(block, Block), "as it was built"
            count = 1 if number == last else NOISY
            sequence = follow(block, sequence, cache, prefix.mask, count)
        return self._read(sequence[:, 0])

    def _prefix(self, condition: Condition) -> "_Prefix":
        """Keys and values of the caption's tokens and embedding in every layer."""
        packing = Packing.of(condition.features_mask)
        tokens, tail = self._tokens(condition, packing), self._caption(condition)
        sequence = torch.cat([tokens, tail], 1) if packing is None else packing.join(tokens, tail)
        length = sequence.shape[1]
        layers = [PrefixCache(NOISY) for _ in self.blocks]
        for block, cache in zip(self.blocks, layers, strict=True):
            sequence = block(sequence, cache)
        place = torch.arange(length + NOISY, device=sequence.device)
        query = torch.arange(length, length + NOISY, device=sequence.device)
        hidden = place > query[:, None]
        if packing is not None:
            hidden = hidden | ((place > packing.count[:, None]) & (place < length))[:, None]
        mask = torch.zeros(hidden.shape, dtype=layers[0].dtype, device=sequence.device)
        mask = mask.masked_fill(hidden, -torch.inf)
        mask = mask[:, None] if mask.ndim == 3 else mask[None, None]
        return _Prefix(condition.features, condition.features_mask, layers, mask)

    def _tokens(self, condition: Condition, packing: Packing | None) -> Tensor:
        """The caption's tokens with their positions: (B, longest, width)."""
        length = self.config.length
        return caption_tokens(condition.clip_caption, self.features, self.position, length, packing)

    def _caption(self, condition: Condition) -> Tensor:
        """The position of the caption's embedding: (B, 1, width)."""
        embedding, first = self._embedding(condition), self.config.length
        vector = self.caption(embedding.to(self.caption.weight.dtype))
        return vector[:, None] + self.position(first, first + 1)

    def _embedding(self, condition: Condition) -> Tensor:
        return caption_embedding(condition.clip_caption, self.config.dim)

    def _noisy(self, x: Tensor, t: Tensor) -> Tensor:
        """The positions of time, noisy embedding and query: (B, 3, width)."""
        first = self.config.length + 1
        noisy = self.embedding(x.to(self.embedding.weight.dtype))
        vectors = torch.stack([self.time(t), noisy, self.query.expand_as(noisy)], dim=1)
        return vectors + self.position(first, first + NOISY)

    def _read(self, hidden: Tensor) -> Tensor:
        return self.out(self.norm(hidden)).float()


@dataclass(frozen=True)
class _Prefix:
    """What a caption contributes to every step."""

    features: Tensor | None
    features_mask: Tensor | None
    layers: list[PrefixCache]
    mask: Tensor
    """(B or 1, 1, 3, prefix + 3): 0 where a position is read, -inf elsewhere."""

    def is_of(self, condition: Condition) -> bool:
        """Whether it is that of this caption, given that its embedding is the same."""
        same = condition.features is self.features
        return same and condition.features_mask is self.features_mask


def statistics(scaling: EmbeddingScaling) -> tuple[Tensor, Tensor]:
    """Mean and deviation (dim,) by which a normalised vector becomes an embedding."""
    zero = torch.zeros(scaling.dim, dtype=torch.float64, device="cpu")
    mean = scaling.denormalize(zero)
    return mean.float(), (scaling.denormalize(zero + 1) - mean).float()
