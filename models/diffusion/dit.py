"""A denoising transformer over patches of an image or a latent (DiT, arXiv 2212.09748)."""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.checks import require_multiple
from models.diffusion.condition import Condition
from models.diffusion.control.encoding import Caption, Encoding
from models.diffusion.process import ProcessConfig
from models.diffusion.text_encoder import TextEncoderConfig
from models.diffusion.unet.conditions import TextFeaturesConfig
from models.diffusion.unet.spatial import CrossAttention
from models.nn import initialization
from models.nn.conditioning_cache import cached
from models.nn.convolution import zero_module
from models.nn.embedding import TimestepEmbedding, sincos_positions
from models.nn.linear import GeluLinear
from models.nn.patchify import patchify, unpatchify
from models.nn.transformer import DiTBlock, modulate

EPSILON = 1e-6


class DiTConfig(BaseModel, frozen=True, extra="forbid"):
    """DiT-XL/2 on latents has image_size 32, image_channels 4, patch 2 and the default sizes."""

    kind: Literal["dit"] = "dit"
    image_size: int = Field(gt=0)
    image_channels: int = Field(default=3, gt=0)
    """3 for images, those of the first stage for latents."""
    patch: int = Field(default=2, gt=0)
    width: int = Field(default=1152, gt=0, multiple_of=4)
    layers: int = Field(default=28, gt=0)
    heads: int = Field(default=16, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    classes: int | None = Field(default=None, gt=0)
    null_class: bool = True
    """Whether there is one more label, `classes`, for "no class" (classifier-free guidance)."""
    text: TextEncoderConfig | None = None
    """A transformer over captions, trained with the network."""
    features: TextFeaturesConfig | None = None
    """Features of captions from a frozen encoder instead."""
    timestep_offset: Literal[0, 1] = 0
    """The time embedding is of 1000 t - offset: published networks count their steps from 0."""
    process: ProcessConfig = ProcessConfig(prediction_type="noise")

    @property
    def conditioning(self) -> frozenset[str]:
        parts = {"class": self.classes, "text": self.text, "features": self.features}
        return frozenset(name for name, part in parts.items() if part is not None)

    @property
    def context(self) -> int | None:
        """Width of the caption's features, where there are any."""
        source = self.text or self.features
        return None if source is None else source.width

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("image_size", self.image_size, "patch", self.patch)
        require_multiple("width", self.width, "heads", self.heads)
        if self.text is not None and self.features is not None:
            raise ValueError("text and features: only one of them can be set")
        return self

    def block(self) -> DiTBlock:
        """One block, with cross-attention where there are captions."""
        cross = None
        if self.context is not None:
            cross = CrossAttention(self.width, self.heads, self.width)
        return DiTBlock(
            self.width,
            self.heads,
            self.width // self.heads,
            dropout=self.dropout,
            reads_context=False,
            cross_attention=cross,
            epsilon=EPSILON,
        )

    def build(self) -> "DiT":
        return DiT(self)


class DiT(nn.Module):
    """Patches attend to each other; the time and the class modulate every block (adaLN-Zero).

    Captions act by cross-attention in every block, whose last layer starts at 0 (PixArt-alpha,
    arXiv 2310.00426, 2.3); unlike there every block has a modulation of its own. A new network
    gives 0. Positions are sines and cosines that are not trained; they are stored, and counted, as
    a parameter, as in the released code. Dropout takes torch's global generator.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.process = config.process.build()
        width, values = config.width, config.image_channels * config.patch**2
        self.image_in = nn.Linear(values, width)
        side = config.image_size // config.patch
        self.position = nn.Parameter(torch.empty(side**2, width), requires_grad=False)
        initialization.computed(self.position, lambda: sincos_positions(side, width))
        self.time = TimestepEmbedding(width, timestep_offset=config.timestep_offset)
        if config.classes is not None:
            self.label = nn.Embedding(config.classes + config.null_class, width)
        if config.text is not None:
            self.text = config.text.build()
        if config.context is not None:
            self.caption = CaptionProjection(config.context, width)
        self.blocks = nn.ModuleList(config.block() for _ in range(config.layers))
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=EPSILON)
        self.image_out = nn.Linear(width, values * config.process.outputs)
        self._initialize()

    @property
    def conditioners(self) -> dict[str, nn.Module]:
        """The networks of conditions that published sizes do not count as the denoiser."""
        return {} if self.config.text is None else {"text_encoder": self.text}

    def _initialize(self) -> None:
        """As the paper's code: Xavier's uniform; 0 for the modulations and the output."""
        for block in self.blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Linear) and layer is not block.modulation:
                    initialization.xavier_uniform(layer.weight)
                    if layer.bias is not None:
                        initialization.constant(layer.bias, 0.0)
            if isinstance(block.cross_attention, CrossAttention):
                zero_module(block.cross_attention.out)
        initialization.xavier_uniform(self.image_in.weight)
        initialization.constant(self.image_in.bias, 0.0)
        for layer in (self.time.hidden, self.time.out):
            initialization.normal(layer.weight, 0.02)
        if self.config.classes is not None:
            initialization.normal(self.label.weight, 0.02)
        zero_module(self.modulation)
        zero_module(self.image_out)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, C, H, W), times (B,) in [0, 1] and labels to the raw output, in fp32.

        The raw output has as many channels, or twice as many where the process learns its variance.

        Raises:
            UserError: the condition lacks something, or the size is not the network's.
        """
        return self.decode(self.encode(x, t, condition))

    def encode(self, x: Tensor, t: Tensor, condition: Condition) -> Encoding:
        """The patches as tokens, with positions, and the vector of time and class."""
        config = self.config
        if x.shape[2:] != (config.image_size, config.image_size):
            raise UserError(
                f"this dit takes {config.image_size} x {config.image_size}, got "
                f"{x.shape[2]} x {x.shape[3]}"
            )
        image = x.to(self.image_in.weight.dtype)
        tokens = self.image_in(patchify(image, config.patch)) + self.position
        vector = self.time(t)
        if config.classes is not None:
            if condition.label is None:
                raise UserError("this dit needs class labels")
            vector = vector + self.label(condition.label)
        return Encoding(tokens, (), vector, self._read(condition))

    def _read(self, condition: Condition) -> Caption:
        """The caption's tokens at the network's width."""
        if self.config.text is not None:
            if condition.text is None:
                raise UserError("this dit needs captions: set data.text")
            tokens = cached(self.text, condition.text, self.text).tokens
            return Caption(cached(self.caption, tokens, self.caption))
        if self.config.features is not None:
            if condition.features is None:
                raise UserError("this dit needs the features of captions")
            return Caption(cached(self.caption, condition.features, self._project))
        return Caption()

    def _project(self, features: Tensor) -> Tensor:
        return self.caption(features.to(self.caption.hidden.weight.dtype))

    def decode(self, encoding: Encoding, residuals: Sequence[Tensor] = ()) -> Tensor:
        """All blocks, to the raw output in fp32; residual i is added after block i."""
        config, tokens, vector = self.config, encoding.hidden, encoding.vector
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, vector, encoding.caption.tokens)
            if index < len(residuals):
                tokens = tokens + residuals[index]
        shift, scale = self.modulation(nn.functional.silu(vector))[:, None].chunk(2, dim=-1)
        out = self.image_out(modulate(self.norm(tokens), shift, scale))
        return unpatchify(out.float(), config.patch, config.image_size, config.image_size)


class CaptionProjection(nn.Module):
    """Linear, GELU by its tanh approximation, linear: a caption's features at the DiT's width."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, width)
        self.out = GeluLinear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, inputs) to (B, L, width)."""
        return self.out(self.hidden(features), "tanh")
