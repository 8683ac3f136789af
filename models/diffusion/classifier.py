"""A classifier of noisy images, whose gradient guides sampling (arXiv 2105.05233, 4)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from models.diffusion.guidance import LogProbability
from models.diffusion.process import ProcessConfig
from models.diffusion.schedules.marginal import Schedule
from models.diffusion.unet.blocks import (
    AttentionBlock,
    BlockSettings,
    ResidualBlock,
    Stage,
    encoder_stages,
)
from models.diffusion.unet.levels import LevelsConfig
from models.nn import initialization
from models.nn.cpu.dispatch import attention
from models.nn.embedding import TimestepEmbedding


class NoisyClassifierConfig(LevelsConfig, frozen=True, extra="forbid"):
    """The encoder half of ADM's UNet and attention pooling; the defaults are ADM's classifier's.

    Of `process` only the schedule counts.
    """

    kind: Literal["noisy_classifier"] = "noisy_classifier"
    classes: int = Field(gt=1)
    process: ProcessConfig = ProcessConfig()

    def build(self) -> "NoisyClassifier":
        return NoisyClassifier(self)


class AttentionPool(nn.Module):
    """One vector from all positions: their mean attends to them and to itself (CLIP's)."""

    def __init__(self, side: int, width: int, head_width: int, outputs: int) -> None:
        super().__init__()
        self.heads = width // head_width
        self.position = nn.Parameter(torch.empty(side**2 + 1, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, outputs)
        initialization.normal(self.position, width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, side, side) to (B, outputs)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.position
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return self.out(attention(query[:, :, :1], key, value, causal=False).flatten(1))


class NoisyClassifier(nn.Module):
    """Classifies noisy images at known times."""

    def __init__(self, config: NoisyClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.process = config.process.build()
        vector = 4 * config.channels
        self.time = TimestepEmbedding(vector, config.channels)
        self.settings = settings = BlockSettings(
            vector, config.groups, 1e-5, config.dropout, "scale_shift"
        )
        first, last = config.widths[0], config.widths[-1]
        self.stem = nn.Conv2d(config.image_channels, first, 3, padding=1)
        stages, _ = encoder_stages(config, self._stage, self._halve)
        self.down = nn.ModuleList(stages)
        self.middle = Stage(
            ResidualBlock(last, last, settings),
            self._attention(last),
            ResidualBlock(last, last, settings),
        )
        self.norm = settings.norm(last)
        self.pool = AttentionPool(
            config.image_size // config.stride, last, config.head_width, config.classes
        )

    @property
    def classes(self) -> int:
        return self.config.classes

    def _stage(self, inputs: int, outputs: int, level: int) -> Stage:
        residual = ResidualBlock(inputs, outputs, self.settings)
        if self.config.attends(level):
            return Stage(residual, self._attention(outputs))
        return Stage(residual)

    def _halve(self, width: int) -> ResidualBlock:
        return ResidualBlock(width, width, self.settings, resampling="halve")

    def _attention(self, width: int) -> AttentionBlock:
        heads = width // self.config.head_width
        return AttentionBlock(width, heads, self.settings, context=None)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noisy (B, C, H, W) and times (B,) in [0, 1] to logits (B, classes), at least in fp32.

        Raises:
            UserError: images of another size.
        """
        side = self.config.image_size
        if x.shape[2:] != (side, side):
            raise UserError(
                f"this noisy classifier takes images of {side} x {side}, got "
                f"{x.shape[2]} x {x.shape[3]}"
            )
        vector = self.time(t)
        image = x.to(self.stem.weight.dtype)
        hidden = self.stem(image.contiguous(memory_format=torch.channels_last))
        for stage in self.down:
            hidden = stage(hidden, vector, None)
        hidden = self.middle(hidden, vector, None)
        logits = self.pool(F.silu(self.norm(hidden)))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def class_log_probability(
    classifier: NoisyClassifier, label: Tensor, schedule: Schedule
) -> LogProbability:
    """ln p(label | x_t), (B,), for images noised by `schedule`, which may not be the classifier's.

    The classifier gets them at the time, and at the scale, that images of their signal-to-noise
    ratio have under its own.
    """
    own = classifier.process.schedule

    def log_probability(x: Tensor, t: Tensor) -> Tensor:
        time = own.inverse_log_snr(schedule.log_snr(t.double())).clamp(0, 1)
        here, there = schedule.at(t.double()).broadcast_to(x), own.at(time).broadcast_to(x)
        ratio = torch.hypot(there.alpha, there.sigma) / torch.hypot(here.alpha, here.sigma)
        logits = classifier(x * ratio.to(x.dtype), time.to(t.dtype))
        return logits.log_softmax(dim=1).gather(1, label[:, None])[:, 0]

    return log_probability
