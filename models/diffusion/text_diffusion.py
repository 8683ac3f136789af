"""A text-conditional denoising transformer over image patches and caption tokens.

Image patches are the sequence, with long skip connections from the first half of the blocks to the
second (U-ViT, arXiv 2209.12152); they attend to each other and to the caption's tokens. The time
and the caption as a whole modulate every block (adaLN-Zero). GLIDE (arXiv 2112.10741, 2.1)
conditions on captions in the same two ways. CLIP embeddings of images act in the same two ways too
(unCLIP, arXiv 2204.06125, 2.1).
"""

from typing import Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.checks import require_multiple
from models.diffusion.condition import Condition
from models.diffusion.process import ProcessConfig
from models.diffusion.unet.image_embedding import ImageEmbedding, ImageEmbeddingConfig
from models.nn import initialization
from models.nn.convolution import zero_module
from models.nn.embedding import LearnedPositionEmbedding, TimestepEmbedding
from models.nn.patchify import patchify, unpatchify
from models.nn.transformer import DiTBlock, modulate


class TextDiffusionConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of the transformer and the process it is trained under."""

    kind: Literal["text_diffusion"] = "text_diffusion"
    image_size: int = Field(gt=0)
    patch: int = Field(default=8, gt=0)
    width: int = Field(default=256, gt=0)
    layers: int = Field(default=6, gt=0)
    heads: int = Field(default=4, gt=0)
    text_vocab: int = Field(gt=1)
    text_length: int = Field(gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    image_embedding: ImageEmbeddingConfig | None = None
    """CLIP embeddings of images besides the captions: the decoder of unCLIP."""
    process: ProcessConfig = ProcessConfig()

    @property
    def conditioning(self) -> frozenset[str]:
        return frozenset({"text"} if self.image_embedding is None else {"text", "clip_image"})

    @model_validator(mode="after")
    def _divisible(self) -> "TextDiffusionConfig":
        require_multiple("image_size", self.image_size, "patch", self.patch)
        require_multiple("width", self.width, "heads", self.heads)
        if self.process.variance != "fixed":
            raise ValueError("process.variance must be fixed: only kind unet learns it")
        return self

    def build(self) -> "TextDiffusion":
        return TextDiffusion(self)


class TextDiffusion(nn.Module):
    """The transformer. Dropout takes torch's global generator, in training mode only."""

    def __init__(self, config: TextDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.process = config.process.build()
        width, values = config.width, 3 * config.patch**2
        self.image_in = nn.Linear(values, width)
        self.image_position = LearnedPositionEmbedding(
            (config.image_size // config.patch) ** 2, width
        )
        self.text_token = nn.Embedding(config.text_vocab, width)
        self.text_position = LearnedPositionEmbedding(config.text_length, width)
        self.text_norm = nn.LayerNorm(width)
        self.time = TimestepEmbedding(width)
        self.caption = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        if config.image_embedding is not None:
            context = width if config.image_embedding.tokens else None
            self.image_embedding = config.image_embedding.build(width, context)
        self.blocks = nn.ModuleList(
            DiTBlock(width, config.heads, width // config.heads, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(config.layers // 2))
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.image_out = nn.Linear(width, values)
        initialization.normal(self.text_token.weight, 0.02)
        for layer in (self.modulation, self.image_out):
            zero_module(layer)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, 3, H, W), times (B,) in [0, 1] and captions to the raw output, in fp32.

        Raises:
            UserError: the condition holds no captions.
        """
        if condition.text is None:
            raise UserError("text_diffusion needs captions: set data.text")
        config = self.config
        image = self.image_in(patchify(x.to(self.image_in.weight.dtype), config.patch))
        image = image + self.image_position(0, image.shape[1])
        embedded = condition.text_states
        if embedded is None:
            embedded = self.text_token(condition.text)
        text = self.text_norm(embedded + self.text_position(0, condition.text.shape[1]))
        vector = self.time(t) + self.caption(mean_token(embedded, condition.text))
        if config.image_embedding is not None:
            vector = vector + self.image_embedding(condition)
            if isinstance(self.image_embedding, ImageEmbedding) and config.image_embedding.tokens:
                text = torch.cat([self.image_embedding.context(condition), text], dim=1)
        tokens = self._blocks(image, vector, text)
        shift, scale = self.modulation(nn.functional.silu(vector))[:, None].chunk(2, dim=-1)
        out = self.image_out(modulate(self.norm(tokens), shift, scale))
        return unpatchify(out.float(), config.patch, x.shape[2], x.shape[3])

    def _blocks(self, tokens: Tensor, vector: Tensor, text: Tensor) -> Tensor:
        """All blocks; block `layers - 1 - i` also gets the input of block i."""
        half = len(self.skips)
        rising = len(self.blocks) - half
        inputs: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index < half:
                inputs.append(tokens)
            elif index >= rising:
                joined = torch.cat([tokens, inputs.pop()], dim=-1)
                tokens = self.skips[index - rising](joined)
            tokens = block(tokens, vector, text)
        return tokens


def mean_token(embedded: Tensor, text: Tensor) -> Tensor:
    """The mean (B, C) of token vectors (B, L, C) where `text` (B, L) is not empty (0)."""
    filled = (text != 0).to(embedded.dtype)[..., None]
    return (embedded * filled).sum(dim=1) / filled.sum(dim=1).clamp(min=1)
