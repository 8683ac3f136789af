"""A small prior trained with optimizer states of several kinds, on the same batches.

A picture's codes are looked up by the first token of its text in a table that the prior must learn;
one in ten is replaced at random, so the loss has a floor, neared while the rate falls to 0.
"""

import math
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from models.autoregressive.prior import PriorConfig
from trainer.low_precision.adamw import SmallMomentAdamW
from trainer.low_precision.in_backward import InBackwardAdamW

States = Literal["fp32", "in backward", "bf16, nearest"]
CONFIG = PriorConfig(
    kind="prior", text_vocab=32, text_length=4, image_vocab=64, grid=(4, 4), width=64, layers=2,
    heads=2, head_width=32,
)  # fmt: skip
TABLE = torch.randint(
    CONFIG.image_vocab,
    (CONFIG.text_vocab, CONFIG.image_length),
    generator=torch.Generator().manual_seed(0),
)
BATCH, NOISE = 16, 0.1
PEAK = 1e-3
SETTINGS = {"lr": PEAK, "betas": (0.9, 0.96), "eps": 1e-8, "weight_decay": 0.045}


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Texts (B, T) and codes (B, N)."""
    rng = torch.Generator().manual_seed(step)
    text = torch.randint(1, CONFIG.text_vocab, (BATCH, CONFIG.text_length), generator=rng)
    codes = TABLE[text[:, 0]]
    noise = torch.randint(0, CONFIG.image_vocab, codes.shape, generator=rng)
    return text, torch.where(torch.rand(codes.shape, generator=rng) < NOISE, noise, codes)


def optimizer_of(states: States, module: nn.Module) -> torch.optim.Optimizer:
    weights = list(module.parameters())
    if states == "in backward":
        return InBackwardAdamW(weights, **SETTINGS, clip=None, seed=0)
    moments = "fp32" if states == "fp32" else "bf16"
    return SmallMomentAdamW([{"params": weights, "moments": moments}], **SETTINGS)


def train(states: States, updates: int) -> list[float]:
    """The loss on every batch; with fp32 states products are bf16 by autocast."""
    torch.manual_seed(0)
    module = CONFIG.build()
    if states != "fp32":
        module.bfloat16()
    optimizer = optimizer_of(states, module)
    losses = []
    for step in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = PEAK * 0.5 * (1 + math.cos(math.pi * step / updates))
        text, codes = batch(step)
        with torch.autocast("cpu", torch.bfloat16) if states == "fp32" else nullcontext():
            loss = module(text, codes, codes).image
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses
