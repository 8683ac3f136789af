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
from models.nn import initialization
from models.nn.convolution import zero_module
from models.nn.embedding import TimestepEmbedding, sincos_positions
from models.nn.patchify import patchify, unpatchify
from models.nn.transformer import DiTBlock, modulate


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
    timestep_offset: Literal[0, 1] = 0
    """The time embedding is of 1000 t - offset: published networks count their steps from 0."""
    process: ProcessConfig = ProcessConfig(prediction_type="noise")

    @property
    def conditioning(self) -> frozenset[str]:
        return frozenset() if self.classes is None else frozenset({"class"})

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        require_multiple("image_size", self.image_size, "patch", self.patch)
        require_multiple("width", self.width, "heads", self.heads)
        return self

    def build(self) -> "DiT":
        return DiT(self)


class DiT(nn.Module):
    """Patches attend to each other; the time and the class modulate every block (adaLN-Zero).

    A new network gives 0. Positions are sines and cosines that are not trained; they are stored,
    and counted, as a parameter, as in the released code. Dropout takes torch's global generator.
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
        self.blocks = nn.ModuleList(
            DiTBlock(
                width,
                config.heads,
                width // config.heads,
                dropout=config.dropout,
                reads_context=False,
                epsilon=1e-6,
            )
            for _ in range(config.layers)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.image_out = nn.Linear(width, values * config.process.outputs)
        self._initialize()

    def _initialize(self) -> None:
        """As the paper's code: Xavier's uniform; 0 for the modulations and the output."""
        for block in self.blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Linear) and layer is not block.modulation:
                    initialization.xavier_uniform(layer.weight)
                    initialization.constant(layer.bias, 0.0)
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
            UserError: the condition holds no labels, or the size is not the network's.
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
        return Encoding(tokens, (), vector, Caption())

    def decode(self, encoding: Encoding, residuals: Sequence[Tensor] = ()) -> Tensor:
        """All blocks, to the raw output in fp32; residual i is added after block i."""
        config, tokens, vector = self.config, encoding.hidden, encoding.vector
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, vector)
            if index < len(residuals):
                tokens = tokens + residuals[index]
        shift, scale = self.modulation(nn.functional.silu(vector))[:, None].chunk(2, dim=-1)
        out = self.image_out(modulate(self.norm(tokens), shift, scale))
        return unpatchify(out.float(), config.patch, config.image_size, config.image_size)
