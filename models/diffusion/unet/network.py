"""The UNet: down through the resolutions, and up again with skip connections."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.encoding import Caption, Encoding, added
from models.diffusion.degradation import (
    BlurAugmentation,
    Degradation,
    DegradationConfig,
)
from models.diffusion.process import ProcessConfig
from models.diffusion.text_encoder import TextEncoderConfig
from models.diffusion.unet.blocks import (
    AttentionBlock,
    BlockSettings,
    PlainResampling,
    ResidualBlock,
    Stage,
    encoder_stages,
)
from models.diffusion.unet.levels import LevelsConfig
from models.diffusion.unet.spatial import SpatialTransformer, SpatialTransformerConfig
from models.nn import initialization
from models.nn.conditioning_cache import cached
from models.nn.convolution import zero_module
from models.nn.cpu.dispatch import in_format, norm_act
from models.nn.cpu.linear import cast
from models.nn.embedding import TimestepEmbedding


class LowResolutionConfig(BaseModel, frozen=True, extra="forbid"):
    """The network enlarges images of `size` pixels: its input holds them bilinearly upsampled."""

    size: int = Field(gt=0)
    augmentation: DegradationConfig = BlurAugmentation()
    condition_on_noise_level: bool = False
    """Whether the network gets the degradation level of its input; the published ones do not."""


class InpaintingConfig(BaseModel, frozen=True, extra="forbid"):
    """The network's input also holds what is kept of an image, and before it the mask.

    The order of the released inpainting models of latent diffusion. The weights of these channels
    start at 0: a network that goes on from one without them starts as that one.
    """

    mask: bool = True
    """Whether the mask is a channel of its own."""

    def channels(self, image_channels: int) -> int:
        """How many more channels the input has."""
        return image_channels + self.mask


class TextFeaturesConfig(BaseModel, frozen=True, extra="forbid"):
    """Features of captions from a frozen encoder: `Condition.features`."""

    width: int = Field(gt=0)


class UNetConfig(LevelsConfig, frozen=True, extra="forbid"):
    """`depth` residual blocks of each level on the way down, `depth` + 1 on the way up.

    The middle always has attention, as in the published code.
    """

    kind: Literal["unet"] = "unet"
    heads: int | None = Field(default=None, gt=0)
    """Heads of every attention; by default as many as `head_width` makes."""
    modulation: Literal["scale_shift", "add"] = "scale_shift"
    """How the time acts on a block: scales and shifts after its second norm, or a sum (DDPM)."""
    resampling: Literal["residual", "convolution", "convolution_end"] = "residual"
    """What halves and doubles resolutions: residual blocks, or single convolutions (DDPM), which
    halve with zeros all round (as in ADM's code) or at the end only (DDPM's)."""
    epsilon: float = Field(default=1e-5, gt=0)
    """Of the group norms."""
    classes: int | None = Field(default=None, gt=0)
    null_class: bool = False
    """Whether there is one more label, `classes`, for "no class" (classifier-free guidance)."""
    class_token: int | None = Field(default=None, gt=0)
    """Features of a class's embedding where it is the one token of cross-attention, as in latent
    diffusion; by default the embedding joins the time's vector."""
    text: TextEncoderConfig | None = None
    """A transformer over captions, trained with the network."""
    features: TextFeaturesConfig | None = None
    """Features of a frozen encoder instead."""
    transformer: SpatialTransformerConfig | None = None
    """Transformer blocks with cross-attention to the caption; by default one attention is over the
    image and the caption (ADM, GLIDE)."""
    low_resolution: LowResolutionConfig | None = None
    inpainting: InpaintingConfig | None = None
    timestep_offset: Literal[0, 1] = 0
    """The time embedding is of 1000 t - offset: published networks count their steps from 0."""
    freq_shift: Literal[0, 1] = 0
    """1: the frequencies of the time embedding end with 1/10,000 (DDPM); 0: just above it (ADM)."""
    process: ProcessConfig = ProcessConfig(prediction_type="noise")

    @property
    def conditioning(self) -> frozenset[str]:
        parts = {
            "class": self.classes,
            "text": self.text,
            "features": self.features,
            "low_resolution": self.low_resolution,
            "inpainting": self.inpainting,
        }
        return frozenset(name for name, part in parts.items() if part is not None)

    @property
    def factor(self) -> int:
        """Output pixels per low-resolution pixel, each way; 1 without a low-resolution input."""
        return 1 if self.low_resolution is None else self.image_size // self.low_resolution.size

    @property
    def context(self) -> int | None:
        """Width of the tokens of cross-attention, where there are any."""
        source = self.text or self.features
        return self.class_token if source is None else source.width

    @property
    def skip_widths(self) -> tuple[int, ...]:
        """Features of the skip connections, the first convolution's first."""
        last = len(self.widths) - 1
        levels = (
            (width,) * (self.depth + (level < last)) for level, width in enumerate(self.widths)
        )
        return (self.widths[0], *(width for widths in levels for width in widths))

    @property
    def head_divisor(self) -> int:
        return self.heads or self.head_width

    def heads_of(self, width: int) -> int:
        return self.heads or width // self.head_width

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.null_class and self.classes is None:
            raise ValueError("null_class needs classes")
        if self.text is not None and self.features is not None:
            raise ValueError("text and features: only one of them can be set")
        if self.class_token is not None:
            self._check_class_token()
        if self.transformer is not None and self.context is None:
            raise ValueError("transformer: its cross-attention needs text, features or class_token")
        low = self.low_resolution
        if low is not None and (self.image_size % low.size or self.image_size == low.size):
            raise ValueError(
                f"image_size {self.image_size} is not a larger multiple of low_resolution.size "
                f"{low.size}"
            )
        return self

    def _check_class_token(self) -> None:
        if self.classes is None or self.transformer is None:
            raise ValueError("class_token needs classes and transformer")
        if self.text is not None or self.features is not None:
            raise ValueError("class_token: cross-attention already reads text or features")

    def build(self) -> "UNet":
        return UNet(self)


class UNet(nn.Module):
    """A denoiser of images, conditioned on any of a class, a caption and a low-resolution image.

    A caption acts twice: pooled it joins the time's vector, and every attention is also over its
    tokens (GLIDE, arXiv 2112.10741, 2.1); features of a frozen encoder, and captions of latent
    diffusion's text encoder, act in attention alone.
    Fully convolutional apart from attention: trained on crops, it runs at other sizes. Dropout
    takes torch's global generator, in training only.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.process = config.process.build()
        low = config.low_resolution
        vector = 4 * config.channels
        self.time = TimestepEmbedding(
            vector,
            config.channels,
            timestep_offset=config.timestep_offset,
            freq_shift=config.freq_shift,
        )
        if config.classes is not None:
            classes = config.classes + config.null_class
            self.label = nn.Embedding(classes, config.class_token or vector)
        if config.text is not None:
            self.text = config.text.build()
            if config.text.pools:
                self.caption = nn.Linear(config.text.width, vector)
        if low is not None and low.condition_on_noise_level:
            self.level = TimestepEmbedding(vector, config.channels)
        self.settings = BlockSettings(
            vector, config.groups, config.epsilon, config.dropout, config.modulation
        )
        first = config.widths[0]
        inputs = 1 if low is None else 2
        more = 0 if config.inpainting is None else config.inpainting.channels(config.image_channels)
        self.stem = nn.Conv2d(inputs * config.image_channels + more, first, 3, padding=1)
        if more:
            initialization.zero_last_inputs(self.stem, more)
        stages, kept = encoder_stages(
            config, self._stage, lambda width: self._resampling(width, "halve")
        )
        self.down = nn.ModuleList(stages)
        last = config.widths[-1]
        self.middle = Stage(
            ResidualBlock(last, last, self.settings),
            self._attention(last),
            ResidualBlock(last, last, self.settings),
        )
        self._build_up(kept)
        self.norm = self.settings.norm(first)
        outputs = config.process.outputs * config.image_channels
        self.out = nn.Conv2d(first, outputs, 3, padding=1)
        zero_module(self.out)

    @property
    def conditioners(self) -> dict[str, nn.Module]:
        """The networks of conditions that published sizes do not count as the denoiser."""
        found: dict[str, nn.Module] = {}
        if self.config.class_token is not None:
            found["class_embedding"] = self.label
        if self.config.text is not None:
            found["text_encoder"] = self.text
        return found

    @property
    def augmentation(self) -> Degradation:
        """The degradation of the low-resolution input.

        Raises:
            UserError: the network has no such input.
        """
        if self.config.low_resolution is None:
            raise UserError("this unet has no low-resolution input: set model.low_resolution")
        return self.config.low_resolution.augmentation

    def _build_up(self, kept: list[int]) -> None:
        """The decoder; each stage gets the latest skip connection that is left."""
        config, width, stages = self.config, self.config.widths[-1], []
        for level in reversed(range(len(config.widths))):
            outputs = config.widths[level]
            for _ in range(config.depth + 1):
                stages.append(self._stage(width + kept.pop(), outputs, level))
                width = outputs
            if level > 0:
                stages[-1].blocks.append(self._resampling(width, "double"))
        self.up = nn.ModuleList(stages)

    def _stage(self, inputs: int, outputs: int, level: int) -> Stage:
        residual = ResidualBlock(inputs, outputs, self.settings)
        if self.config.attends(level):
            return Stage(residual, self._attention(outputs))
        return Stage(residual)

    def _attention(self, width: int) -> AttentionBlock | SpatialTransformer:
        config, heads = self.config, self.config.heads_of(width)
        if config.transformer is None or config.context is None:
            return AttentionBlock(width, heads, self.settings, context=config.context)
        return SpatialTransformer(
            width, heads, self.settings, context=config.context, depth=config.transformer.depth
        )

    def _resampling(
        self, width: int, resampling: Literal["halve", "double"]
    ) -> ResidualBlock | PlainResampling:
        match self.config.resampling:
            case "residual":
                return ResidualBlock(width, width, self.settings, resampling=resampling)
            case "convolution":
                return PlainResampling(width, resampling)
            case "convolution_end":
                return PlainResampling(width, resampling, pads="end")

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, C, H, W), times (B,) in [0, 1] and the condition to the raw output, in fp32.

        The raw output has as many channels, or twice as many where the process learns its variance.

        Raises:
            UserError: the condition lacks something, or the size does not fit.
        """
        return self.decode(self.encode(x, t, condition))

    def encode(
        self,
        x: Tensor,
        t: Tensor,
        condition: Condition,
        *,
        caption: Caption | None = None,
        hint: Tensor | None = None,
    ) -> Encoding:
        """The way down: what `decode` takes.

        `caption` is what a network with the same text encoder has read; `hint` (B, C, H, W) is
        added after the first convolution.
        """
        if caption is None:
            caption = self._read(condition)
        vector, context = self._embed(t, condition, caption.pooled), caption.tokens
        image = self._image(x, condition).to(self.stem.weight.dtype)
        hidden = self.stem(in_format(image, self.stem.weight))
        if hint is not None:
            hidden = hidden + hint
        skips = [hidden]
        for stage in self.down:
            hidden = stage(hidden, vector, context)
            skips.append(hidden)
        hidden = self.middle(hidden, vector, context)
        return Encoding(hidden, tuple(skips), vector, caption)

    def decode(self, encoding: Encoding, residuals: Sequence[Tensor] = ()) -> Tensor:
        """The way up, to the raw output in fp32.

        `residuals` are added to the last of: skip connections, middle.
        """
        hidden, skips, vector, caption = encoding
        *kept, hidden = added((*skips, hidden), residuals)
        for stage in self.up:
            hidden = stage(torch.cat([hidden, kept.pop()], dim=1), vector, caption.tokens)
        return self.out(norm_act(self.norm, hidden, silu=True)).float()

    def _read(self, condition: Condition) -> Caption:
        """The caption as its encoder gives it."""
        config = self.config
        if config.text is not None:
            if condition.text is None:
                raise UserError("this unet needs captions: set data.text")
            if (states := condition.text_states) is not None:
                return Caption(states, states[:, -1] if config.text.pools else None)
            features = cached(self.text, condition.text, self.text)
            return Caption(features.tokens, features.pooled)
        if config.features is not None:
            if condition.features is None:
                raise UserError("this unet needs the features of captions")
            dtype = self.stem.weight.dtype
            return Caption(cached(self, condition.features, partial(cast, dtype=dtype)))
        if config.class_token is not None:
            return Caption(cached(self, self._label(condition), self._class_tokens))
        return Caption()

    def _class_tokens(self, label: Tensor) -> Tensor:
        """Classes (B,) to one token each, (B, 1, C)."""
        return self.label(label)[:, None]

    def _label(self, condition: Condition) -> Tensor:
        if condition.label is None:
            raise UserError("this unet needs class labels")
        return condition.label

    def _embed(self, t: Tensor, condition: Condition, pooled: Tensor | None) -> Tensor:
        """The vector of time, class, caption and level."""
        config, vector = self.config, self.time(t)
        if config.classes is not None and config.class_token is None:
            vector = vector + self.label(self._label(condition))
        if pooled is not None:
            vector = vector + self.caption(pooled)
        if config.low_resolution is not None and config.low_resolution.condition_on_noise_level:
            if condition.noise_level is None:
                raise UserError("this unet needs the level of its low-resolution image")
            vector = vector + self.level(condition.noise_level)
        return vector

    def _image(self, x: Tensor, condition: Condition) -> Tensor:
        """The noisy image, the upsampled low-resolution one, and what inpainting is given."""
        height, width = x.shape[2:]
        if height % self.config.stride or width % self.config.stride:
            raise UserError(
                f"this unet takes heights and widths that are multiples of {self.config.stride}, "
                f"got {height} x {width}"
            )
        parts = [x]
        if self.config.low_resolution is not None:
            if condition.low_res is None:
                raise UserError("this unet needs a low-resolution image")
            low = condition.low_res.to(x.dtype)
            size = (height, width)
            parts.append(F.interpolate(low, size, mode="bilinear", align_corners=False))
        if self.config.inpainting is not None:
            if condition.mask is None or condition.masked is None:
                raise UserError("this unet inpaints: it needs a mask and what is kept of an image")
            given = [condition.mask] if self.config.inpainting.mask else []
            parts += [each.to(x.dtype) for each in (*given, condition.masked)]
        return x if len(parts) == 1 else torch.cat(parts, dim=1)
