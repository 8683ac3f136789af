"""The transformer prior of DALL-E over text and image tokens (arXiv 2102.12092, 2.2 and B)."""

from typing import Literal, NamedTuple, Self, overload

import torch
from pydantic import BaseModel, Field, PositiveInt, model_validator
from torch import Tensor, nn

from models.autoregressive.chunked_cross_entropy import chunked_cross_entropy
from models.autoregressive.patterns import MaskFlavor, Pattern, layer_patterns
from models.autoregressive.sparse import SparseAttention
from models.nn import initialization
from models.nn.attention import FullKVCache, KVCache
from models.nn.embedding import AxialPositionEmbedding, LearnedPositionEmbedding
from models.nn.transformer import Block

PAD = 0
"""Text token of padding."""


class PriorConfig(BaseModel, frozen=True, extra="forbid"):
    """The paper's 12-billion network: width 3968, 64 layers, 62 heads of 64, grid 32 x 32.

    Its blocks then hold 12 x width^2 x layers = 12,092,178,432 matrix weights, and `mask_flavor` is
    `paper`. The sequence begins with one learned vector; nothing stands between text and image.
    """

    kind: Literal["prior"] = "prior"
    text_vocab: int = Field(gt=1)
    text_length: int = Field(gt=0)
    image_vocab: int = Field(gt=1)
    grid: tuple[PositiveInt, PositiveInt]
    """Rows and columns of image tokens."""
    width: int = Field(default=256, gt=0)
    layers: int = Field(default=6, gt=0)
    heads: int = Field(default=4, gt=0)
    head_width: int = Field(default=64, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    mask_flavor: MaskFlavor = "dense"
    """Which earlier positions a layer reads: all, or as the paper or DALLE-pytorch have it."""
    mask_kernel: int | None = Field(default=None, gt=0)
    """Side of the convolutional mask, odd; 11 in the paper and 5 in DALLE-pytorch where None."""

    @model_validator(mode="after")
    def _kernel_has_a_middle(self) -> Self:
        if self.mask_kernel is not None and (
            self.mask_kernel % 2 == 0 or self.mask_flavor == "dense"
        ):
            raise ValueError("mask_kernel is odd, and belongs to a mask_flavor that is not dense")
        return self

    @property
    def prefix_length(self) -> int:
        """Positions before the image: the start and the caption."""
        return 1 + self.text_length

    @property
    def patterns(self) -> tuple[Pattern | None, ...]:
        """The attention pattern of each layer; None: full causal attention."""
        return layer_patterns(self.mask_flavor, self.layers, self.grid[1], self.mask_kernel)

    @property
    def image_length(self) -> int:
        return self.grid[0] * self.grid[1]

    def build(self) -> "Prior":
        return Prior(self)


class PriorLogits(NamedTuple):
    """Predictions of every token from those before it."""

    text: Tensor
    """(B, T, text_vocab)."""
    image: Tensor
    """(B, N, image_vocab)."""


class PriorLosses(NamedTuple):
    """Mean cross-entropies in nats per token of their kind, in fp32.

    Padded text positions count as tokens (their target is 0): both means then have fixed
    denominators, and shares of a batch average to the whole.
    """

    text: Tensor
    image: Tensor


class Prior(nn.Module):
    """A causal transformer over [start, text 0..T-1, image 0..N-2].

    The output at a position predicts the next token; a head per kind of token is evaluated only at
    the positions that predict that kind. A padded text position (token 0) has a learned vector of
    its own. Dropout draws from torch's global generator, in training mode only.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.start = LearnedPositionEmbedding(1, width)
        self.text_token = nn.Embedding(config.text_vocab, width)
        self.text_pad = LearnedPositionEmbedding(config.text_length, width)
        self.text_position = LearnedPositionEmbedding(config.text_length, width)
        self.image_token = nn.Embedding(config.image_vocab, width)
        self.image_position = AxialPositionEmbedding(*config.grid, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                config.head_width,
                causal=True,
                dropout=config.dropout,
                pattern=sparse_attention_of(config, pattern),
            )
            for pattern in config.patterns
        )
        self.norm = nn.LayerNorm(width)
        self.text_head = nn.Linear(width, config.text_vocab)
        self.image_head = nn.Linear(width, config.image_vocab)
        self._start_small()

    def _start_small(self) -> None:
        """Matrices at 0.02, those that write into the residual stream smaller by sqrt(2 layers)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith("out.weight")
                scale = (2 * self.config.layers) ** -0.5 if writes else 1.0
                initialization.normal(parameter, 0.02 * scale)
            elif name.endswith("bias"):
                initialization.constant(parameter, 0.0)

    @overload
    def forward(self, text: Tensor, codes: Tensor) -> PriorLogits: ...

    @overload
    def forward(self, text: Tensor, codes: Tensor, target: Tensor) -> PriorLosses: ...

    def forward(
        self, text: Tensor, codes: Tensor, target: Tensor | None = None
    ) -> PriorLogits | PriorLosses:
        """Teacher-forced logits in fp32 for text (B, T) and image codes (B, N), both int64.

        With the codes to predict, `target` (B, N), which may differ from those that are read, it
        returns the cross-entropies of `text` and `target` instead; many logits are then not kept in
        memory. An engine calls no other method, hence one for both.
        """
        image = self.embed_image(codes[:, :-1], 0)
        hidden = self.run(torch.cat([self.embed_text(text), image], dim=1))
        length = self.config.text_length
        before, after = hidden[:, :length], hidden[:, length:]
        if target is None:
            return PriorLogits(self.text_head(before).float(), self.image_head(after).float())
        return PriorLosses(
            chunked_cross_entropy(self.text_head, before, text),
            chunked_cross_entropy(self.image_head, after, target),
        )

    def embed_text(self, text: Tensor) -> Tensor:
        """Start and text tokens: (B, T) to (B, 1 + T, width)."""
        length = self.config.text_length
        padding = self.text_pad(0, length)
        tokens = torch.where((text == PAD)[..., None], padding, self.text_token(text))
        start = self.start(0, 1).expand(len(text), 1, -1)
        return torch.cat([start, tokens + self.text_position(0, length)], dim=1)

    def embed_image(self, codes: Tensor, first: int) -> Tensor:
        """Image tokens (B, n) at the positions first..first+n-1: (B, n, width)."""
        return self.image_token(codes) + self.image_position(first, first + codes.shape[1])

    def run(self, x: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        """Embedded tokens through all blocks: (B, L, width) to (B, L, width), normalised."""
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[index])
        return self.norm(x)

    def new_caches(self, batch: int) -> list[KVCache]:
        """Empty caches, one per block."""
        config = self.config
        length = config.text_length + config.image_length
        sparse = (sparse_attention_of(config, pattern) for pattern in config.patterns)
        return [
            FullKVCache(batch, config.heads, length, config.head_width)
            if attention is None
            else attention.new_cache(batch, config.heads, config.head_width)
            for attention in sparse
        ]


def sparse_attention_of(config: PriorConfig, pattern: Pattern | None) -> SparseAttention | None:
    """The attention of a layer with this pattern; None: dense."""
    if pattern is None:
        return None
    return SparseAttention(pattern, config.prefix_length, config.image_length)


def weighted(losses: PriorLosses, text_weight: float = 1 / 8) -> Tensor:
    """1/8 text + 7/8 image (arXiv 2102.12092, 2.2), or another weight."""
    return text_weight * losses.text + (1 - text_weight) * losses.image
