"""The blocks of the UNet. All of them take features, the time's vector and the caption's tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from models.diffusion.control.encoding import Context
from models.diffusion.unet.levels import LevelsConfig
from models.nn.attention import ContextAttention, SelfAttention
from models.nn.convolution import zero_module
from models.nn.cpu.dispatch import Conv3x3, norm_act

Resampling = Literal["keep", "halve", "double"]


@dataclass(frozen=True)
class BlockSettings:
    """What the residual blocks of one network have in common."""

    vector: int
    """Width of the time's vector."""
    groups: int
    epsilon: float
    dropout: float
    modulation: Literal["scale_shift", "add"]

    def norm(self, width: int) -> nn.GroupNorm:
        return nn.GroupNorm(self.groups, width, eps=self.epsilon)


class ResidualBlock(nn.Module):
    """skip(x) + conv(dropout(silu(modulated norm(conv(silu(norm x)))))).

    The second convolution starts at 0. Where the block halves or doubles the resolution, the skip
    is resampled, and so is the branch between its first activation and convolution (as in BigGAN,
    arXiv 2105.05233, 3). Dropout takes torch's global generator, in training mode only.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        settings: BlockSettings,
        *,
        resampling: Resampling = "keep",
    ) -> None:
        super().__init__()
        self.resampling = resampling
        self.scales = settings.modulation == "scale_shift"
        self.norm_in = settings.norm(inputs)
        self.conv_in = Conv3x3(inputs, outputs)
        self.modulation = nn.Linear(settings.vector, 2 * outputs if self.scales else outputs)
        self.norm_out = settings.norm(outputs)
        self.dropout = nn.Dropout(settings.dropout)
        self.conv_out = Conv3x3(outputs, outputs)
        zero_module(self.conv_out)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, vector: Tensor, context: Context | None) -> Tensor:
        """(B, inputs, H, W) and (B, vector) to (B, outputs, H', W')."""
        hidden = norm_act(self.norm_in, x, silu=True)
        if self.resampling == "double":
            hidden = self.conv_in.upsample_conv(hidden)
        else:
            hidden = self.conv_in(resampled(hidden, self.resampling))
        modulation = self.modulation(F.silu(vector))
        if self.scales:
            scale, shift = modulation.chunk(2, dim=1)
            hidden = norm_act(self.norm_out, hidden, silu=True, scale_shift=(scale, shift))
        else:
            hidden = norm_act(self.norm_out, hidden, silu=True, input_bias=modulation)
        kept = self.skip(resampled(x, self.resampling))
        return self.conv_out(self.dropout(hidden)).add_(kept)


def resampled(x: Tensor, resampling: Resampling) -> Tensor:
    """(B, C, H, W) at its own, half or twice the resolution: means over squares, or copies."""
    match resampling:
        case "keep":
            return x
        case "halve":
            return F.avg_pool2d(x, 2)
        case "double":
            return F.interpolate(x, scale_factor=2, mode="nearest")


class PlainResampling(nn.Module):
    """A convolution of stride 2, or one after doubling (DDPM).

    `pads`: where the one of stride 2 meets zeros, all round or below and to the right only.
    """

    def __init__(
        self,
        width: int,
        resampling: Literal["halve", "double"],
        *,
        pads: Literal["round", "end"] = "round",
    ) -> None:
        super().__init__()
        self.doubles = resampling == "double"
        self.shifts = pads == "end" and not self.doubles
        self.conv = (
            Conv3x3(width, width)
            if self.doubles
            else nn.Conv2d(width, width, 3, stride=2, padding=1)
        )

    def forward(self, x: Tensor, vector: Tensor, context: Context | None) -> Tensor:
        """(B, width, H, W) to (B, width, H', W')."""
        if isinstance(self.conv, Conv3x3):
            return self.conv.upsample_conv(x)
        if self.shifts:
            return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.conv.weight, self.conv.bias, stride=2)
        return self.conv(x)


class AttentionBlock(nn.Module):
    """x + attention(norm x) over an image's positions and, if there are any, the caption's tokens.

    The output projection starts at 0.
    """

    def __init__(
        self, width: int, heads: int, settings: BlockSettings, *, context: int | None
    ) -> None:
        super().__init__()
        self.norm = settings.norm(width)
        self.attention = (
            SelfAttention(width, heads, width // heads, causal=False)
            if context is None
            else ContextAttention(width, heads, width // heads, context=context)
        )
        zero_module(self.attention.out)

    def forward(self, x: Tensor, vector: Tensor, context: Context | None) -> Tensor:
        """(B, width, H, W) and the tokens (B, L, context) to (B, width, H, W)."""
        tokens = norm_act(self.norm, x, silu=False).flatten(2).transpose(1, 2)
        mixed = self.attention(tokens) if context is None else self.attention(tokens, *context)
        return x + mixed.transpose(1, 2).view(x.shape)


class Stage(nn.Module):
    """Blocks one after the other."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, vector: Tensor, context: Context | None) -> Tensor:
        for block in self.blocks:
            x = block(x, vector, context)
        return x


def encoder_stages(
    config: LevelsConfig,
    stage: Callable[[int, int, int], Stage],
    halve: Callable[[int], nn.Module],
) -> tuple[list[Stage], list[int]]:
    """The way down, from `stage` of (inputs, outputs, level) and `halve` of a width.

    Also the widths of its skip connections, the stem's first.
    """
    width = config.widths[0]
    kept, stages = [width], []
    for level, outputs in enumerate(config.widths):
        for _ in range(config.depth):
            stages.append(stage(width, outputs, level))
            width = outputs
            kept.append(width)
        if level < len(config.widths) - 1:
            stages.append(Stage(halve(width)))
            kept.append(width)
    return stages, kept
