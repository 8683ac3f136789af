"""The UNet: down through the resolutions, and up again with skip connections."""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.encoding import Caption, Encoding, added
from models.diffusion.degradation import Degradation
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
from models.diffusion.unet.conditions import (
    FeatureProjection,
    InpaintingConfig,
    LowResolutionConfig,
    TextFeaturesConfig,
    needed,
    with_images,
)
from models.diffusion.unet.image_embedding import ImageEmbedding, ImageEmbeddingConfig
from models.diffusion.unet.levels import LevelsConfig
from models.diffusion.unet.size_embedding import SizeEmbedding
from models.diffusion.unet.spatial import SpatialTransformer, SpatialTransformerConfig
from models.nn import initialization
from models.nn.conditioning_cache import cached
from models.nn.convolution import zero_module
from models.nn.cpu.dispatch import in_format, norm_act
from models.nn.cpu.linear import cast
from models.nn.embedding import TimestepEmbedding


class UNetConfig(LevelsConfig, frozen=True, extra="forbid"):
    """`depth` residual blocks of each level on the way down, `depth` + 1 on the way up."""

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
    text_embedding: int | None = Field(default=None, gt=0)
    """Values of a CLIP embedding of the caption that joins the time's vector, as in Karlo; the
    features then come from the same encoder, and those of padding do not count."""
    image_embedding: ImageEmbeddingConfig | None = None
    """CLIP embeddings of images, which join the time's vector and make tokens of attention."""
    size_embedding: int | None = Field(default=None, gt=0, multiple_of=2)
    """Features of each number of `Condition.sizes`, which join the time's vector (SDXL: 256)."""
    middle_attention: bool = True
    """Whether the middle has attention."""
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
            "features": self.features if self.text_embedding is None else None,
            "clip_text": self.text_embedding,
            "clip_image": self.image_embedding,
            "sizes": self.size_embedding,
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
        if self.text is not None:
            return self.text.width
        if self.features is not None:
            return self.features.context
        embedding = self.image_embedding
        if embedding is not None and embedding.tokens:
            return embedding.dim
        return self.class_token

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
        token = self.class_token is not None
        if token and (self.classes is None or self.transformer is None):
            raise ValueError("class_token needs classes and transformer")
        if token and (self.text or self.features or self.image_embedding):
            raise ValueError("class_token: cross-attention already has other tokens")
        if self.transformer is not None and self.context is None:
            raise ValueError("transformer: its cross-attention needs tokens (text, features, ...)")
        if self.text_embedding is not None and self.text is not None:
            raise ValueError("text_embedding: comes with features, not with text")
        low = self.low_resolution
        if low is not None and (self.image_size % low.size or self.image_size == low.size):
            raise ValueError(
                f"image_size {self.image_size} is not a larger multiple of low_resolution.size "
                f"{low.size}"
            )
        return self

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
        self._build_embeddings(vector)
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
            *([self._attention(last)] if config.middle_attention else []),
            ResidualBlock(last, last, self.settings),
        )
        self._build_up(kept)
        self.norm = self.settings.norm(first)
        outputs = config.process.outputs * config.image_channels
        self.out = nn.Conv2d(first, outputs, 3, padding=1)
        zero_module(self.out)

    def _build_embeddings(self, vector: int) -> None:
        """The layers of features and of CLIP embeddings."""
        config = self.config
        if config.features is not None and config.features.projection is not None:
            self.features = FeatureProjection(config.features.width, config.features.projection)
        if config.text_embedding is not None:
            self.text_embedding = nn.Linear(config.text_embedding, vector)
        if config.size_embedding is not None:
            self.size_embedding = SizeEmbedding(vector, config.size_embedding)
        if config.image_embedding is not None:
            context = config.context if config.image_embedding.tokens else None
            self.image_embedding = config.image_embedding.build(vector, context)

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
        vector, context = self._embed(x, t, condition, caption.pooled), caption.context
        self._check_size(x)
        image = with_images(x, condition, self.config.low_resolution, self.config.inpainting)
        image = image.to(self.stem.weight.dtype)
        hidden = self.stem(in_format(image, self.stem.weight))
        if hint is not None:
            hidden = hidden + hint
        skips = [hidden]
        for stage in self.down:
            hidden = stage(hidden, vector, context)
            skips.append(hidden)
        hidden = self.middle(hidden, vector, context)
        return Encoding(hidden, tuple(skips), vector, caption)

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[2:]
        if height % self.config.stride or width % self.config.stride:
            raise UserError(
                f"this unet takes heights and widths that are multiples of {self.config.stride}, "
                f"got {height} x {width}"
            )

    def decode(self, encoding: Encoding, residuals: Sequence[Tensor] = ()) -> Tensor:
        """The way up, to the raw output in fp32.

        `residuals` are added to the last of: skip connections, middle.
        """
        *features, hidden = added((*encoding.skips, encoding.hidden), residuals)
        vector, context = encoding.vector, encoding.caption.context
        del encoding  # so that skip connections are freed as they are read
        for stage in self.up:
            hidden = stage(torch.cat([hidden, features.pop()], dim=1), vector, context)
        return self.out(norm_act(self.norm, hidden, silu=True)).float()

    def _read(self, condition: Condition) -> Caption:
        """The tokens of an image embedding, and the caption as its encoder gives it."""
        caption, settings = self._caption(condition), self.config.image_embedding
        part = self.image_embedding if settings is not None and settings.tokens else None
        return part.prepend(condition, caption) if isinstance(part, ImageEmbedding) else caption

    def _caption(self, condition: Condition) -> Caption:
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
            tokens = cached(self, condition.features, self._features)
            return Caption(tokens, mask=condition.features_mask)
        if config.class_token is not None:
            return Caption(
                cached(self, needed(condition.label, "class labels"), self._class_tokens)
            )
        return Caption()

    def _features(self, features: Tensor) -> Tensor:
        projected = self.config.features is not None and self.config.features.projection
        return self.features(features) if projected else cast(features, self.stem.weight.dtype)

    def _class_tokens(self, label: Tensor) -> Tensor:
        """Classes (B,) to one token each, (B, 1, C)."""
        return self.label(label)[:, None]

    def _embed(self, x: Tensor, t: Tensor, condition: Condition, pooled: Tensor | None) -> Tensor:
        """The vector of time, class, caption and level."""
        config, vector = self.config, self.time(t)
        if config.classes is not None and config.class_token is None:
            vector = vector + self.label(needed(condition.label, "class labels"))
        if pooled is not None:
            vector = vector + self.caption(pooled)
        if config.text_embedding is not None:
            given = needed(condition.text_embedding, "CLIP embeddings of captions")
            vector = vector + self.text_embedding(given.to(vector.dtype))
        if config.image_embedding is not None:
            vector = vector + self.image_embedding(condition)
        if config.low_resolution is not None and config.low_resolution.condition_on_noise_level:
            level = needed(condition.noise_level, "the level of its low-resolution image")
            vector = vector + self.level(level)
        if config.size_embedding is not None:
            vector = vector + self.size_embedding(condition, x)
        return vector
