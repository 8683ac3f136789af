"""A control branch for a frozen denoiser (ControlNet, arXiv 2302.05543)."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Literal, Protocol, Self, TypeVar, runtime_checkable

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.encoding import Encoding
from models.diffusion.control.hint_encoder import HintEncoder, HintEncoderConfig
from models.diffusion.dit import DiTConfig
from models.diffusion.process import ProcessConfig
from models.diffusion.unet.network import UNet, UNetConfig
from models.nn.conditioning_cache import cached
from models.nn.convolution import zero_module

BaseConfig = Annotated[UNetConfig | DiTConfig, Field(discriminator="kind")]
_ENCODER = {"time", "label", "caption", "level", "stem", "down", "middle"}
L = TypeVar("L", nn.Linear, nn.Conv2d)
_DECODER = {"up", "norm", "out"}


@runtime_checkable
class Controllable(Protocol):
    """A denoiser in two halves, between which a control acts."""

    def encode(self, x: Tensor, t: Tensor, condition: Condition) -> Encoding:
        """Everything before."""

    def decode(self, encoding: Encoding, residuals: tuple[Tensor, ...] = ()) -> Tensor:
        """The raw output."""


class ControlConfig(BaseModel, frozen=True, extra="forbid"):
    """A copy of the base's encoder (of a DiT: of its first blocks) that reads a hint."""

    kind: Literal["control"] = "control"
    base: BaseConfig
    """The settings of the network that it controls."""
    hint: HintEncoderConfig = HintEncoderConfig()
    middle_only: bool = False
    """Whether it acts on the middle of a UNet alone."""
    unlocked: bool = False
    """Whether it has a decoder of its own, a copy of the UNet's, that is trained with it."""
    blocks: int | None = Field(default=None, gt=0)
    """Blocks of a DiT that are copied; by default half of them."""

    @property
    def image_size(self) -> int:
        return self.base.image_size

    @property
    def image_channels(self) -> int:
        return self.base.image_channels

    @property
    def process(self) -> ProcessConfig:
        return self.base.process

    @property
    def conditioning(self) -> frozenset[str]:
        return self.base.conditioning

    @property
    def classes(self) -> int | None:
        return self.base.classes

    @property
    def null_class(self) -> bool:
        return self.base.null_class

    @property
    def hint_size(self) -> int:
        """Side of the hints in pixels."""
        return self.base.image_size * self.hint.stride

    @property
    def copied_blocks(self) -> int:
        """Blocks of a DiT that are copied."""
        assert isinstance(self.base, DiTConfig), "blocks are a DiT's"
        return self.blocks or (self.base.layers + 1) // 2

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hint.stride & (self.hint.stride - 1):
            raise ValueError(f"hint.stride {self.hint.stride} is not a power of 2")
        widths = len(self.hint.chosen_widths)
        if isinstance(self.base, UNetConfig):
            if self.base.image_embedding is not None or self.base.text_embedding is not None:
                raise ValueError("base: a network of CLIP embeddings cannot be controlled")
            if self.blocks is not None:
                raise ValueError("blocks: are those of a dit; base is a unet")
            needed = self.hint.halvings + 1
        else:
            self._check_dit(self.base)
            needed = self.hint.halvings + self.base.patch.bit_length()
        if self.hint.widths is not None and widths < needed:
            raise ValueError(
                f"hint.widths: {widths} cannot shrink the hint so often; give at least {needed}"
            )
        return self

    def _check_dit(self, base: DiTConfig) -> None:
        if self.middle_only or self.unlocked:
            raise ValueError("middle_only and unlocked: only a unet has a middle and a decoder")
        if base.patch & (base.patch - 1):
            raise ValueError(f"base.patch {base.patch} is not a power of 2")
        if self.blocks is not None and self.blocks > base.layers:
            raise ValueError(f"blocks: base has only {base.layers}")

    def build(self) -> "Control":
        return UNetControl(self) if isinstance(self.base, UNetConfig) else DiTControl(self)


class Control(nn.Module, ABC):
    """What is trained: copies of the base's layers, the hint encoder and zero layers.

    A new one changes nothing, bit for bit: the last layer of every path is 0. The base is an
    argument of the forward and no part of the module.
    """

    hint: HintEncoder

    def __init__(self, config: ControlConfig) -> None:
        super().__init__()
        self.config = config
        self.process = config.process.build()
        self.decoder: UNet | None = None
        """Used instead of the base's."""

    def forward(self, x: Tensor, t: Tensor, condition: Condition, base: Controllable) -> Tensor:
        """The raw output of the controlled base, whose encoder keeps no gradients.

        Raises:
            UserError: the condition has no hint, or one of another size.
        """
        with torch.no_grad():
            encoding = base.encode(x, t, condition)
        (hint,) = condition.hints or (None,)
        if hint is None:
            raise UserError("this control needs hints: set data.hint")
        residuals = self.residuals(x, t, condition, hint, encoding)
        decoder = base if self.decoder is None else self.decoder
        return decoder.decode(encoding, residuals)

    @abstractmethod
    def residuals(
        self, x: Tensor, t: Tensor, condition: Condition, hint: Tensor, encoding: Encoding
    ) -> tuple[Tensor, ...]:
        """What the base's `decode` adds, from what its `encode` has given.

        Raises:
            UserError: a hint of another size or number of channels.
        """

    def copied(self) -> Iterator[tuple[str, str]]:
        """Names of the parameters that start as the base's: here and there."""
        for name, _ in self.named_parameters():
            part, _, rest = name.partition(".")
            if part in ("encoder", "decoder"):
                yield name, rest

    def _read(self, hint: Tensor, dtype: torch.dtype) -> Tensor:
        """The hint's features, computed once per sampling run."""
        return cached(self.hint, hint, lambda each: self.hint(each.to(dtype)))

    def _check(self, x: Tensor, hint: Tensor) -> None:
        channels, stride = self.config.hint.channels, self.config.hint.stride
        expected = (channels, x.shape[2] * stride, x.shape[3] * stride)
        if tuple(hint.shape[1:]) != expected:
            raise UserError(
                f"the hint has {hint.shape[1]} channels and {hint.shape[2]} x {hint.shape[3]} "
                f"pixels; this control takes {channels} channels and {expected[1]} x "
                f"{expected[2]} pixels"
            )


class UNetControl(Control):
    """A copy of a UNet's encoder, with a zero convolution for every skip and the middle."""

    def __init__(self, config: ControlConfig) -> None:
        super().__init__(config)
        base = config.base
        assert isinstance(base, UNetConfig), "the control of a UNet"
        # a class as a token is read by the base, like a caption
        read = () if base.class_token is None else ("label",)
        self.encoder = _part(base, _ENCODER.difference(read))
        self.hint = config.hint.build(base.widths[0])
        widths = [*base.skip_widths, base.widths[-1]]
        acting = widths[-1:] if config.middle_only else widths
        self.zero = nn.ModuleList(zeroed(nn.Conv2d(width, width, 1)) for width in acting)
        if config.unlocked:
            self.decoder = _part(base, _DECODER)

    def residuals(
        self, x: Tensor, t: Tensor, condition: Condition, hint: Tensor, encoding: Encoding
    ) -> tuple[Tensor, ...]:
        """One for each skip connection, the first convolution's first, and one for the middle."""
        self._check(x, hint)
        features = self._read(hint, self.encoder.stem.weight.dtype)
        own = self.encoder.encode(x, t, condition, caption=encoding.caption, hint=features)
        outputs = (*own.skips, own.hidden)[-len(self.zero) :]
        return tuple(zero(each) for zero, each in zip(self.zero, outputs, strict=True))


class DiTControl(Control):
    """Copies of a DiT's first blocks, with a zero linear layer after each.

    The first one reads the base's tokens plus those of the hint (as PixArt-delta's control does,
    arXiv 2401.05252, 4.2).
    """

    def __init__(self, config: ControlConfig) -> None:
        super().__init__(config)
        base = config.base
        assert isinstance(base, DiTConfig), "the control of a DiT"
        count, width = config.copied_blocks, base.width
        blocks = (base.block() for _ in range(count))
        self.encoder = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
        stride = config.hint.stride * base.patch
        self.hint = config.hint.model_copy(update={"stride": stride}).build(width)
        self.zero = nn.ModuleList(zeroed(nn.Linear(width, width)) for _ in range(count))

    def residuals(
        self, x: Tensor, t: Tensor, condition: Condition, hint: Tensor, encoding: Encoding
    ) -> tuple[Tensor, ...]:
        """One for each copied block."""
        self._check(x, hint)
        features = self._read(hint, encoding.hidden.dtype)
        tokens, found = encoding.hidden + features.flatten(2).transpose(1, 2), []
        for block, zero in zip(self._blocks(), self.zero, strict=True):
            tokens = block(tokens, encoding.vector, encoding.caption.tokens)
            found.append(zero(tokens))
        return tuple(found)

    def _blocks(self) -> nn.ModuleList:
        blocks = self.encoder["blocks"]
        assert isinstance(blocks, nn.ModuleList), "made as one"
        return blocks


def zeroed(layer: L) -> L:
    """The layer, all its parameters 0."""
    zero_module(layer)
    return layer


def _part(config: UNetConfig, kept: set[str]) -> UNet:
    """A UNet of some of its layers."""
    network = config.build()
    for name in [name for name, _ in network.named_children() if name not in kept]:
        delattr(network, name)
    return network
