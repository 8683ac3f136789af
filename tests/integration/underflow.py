"""A residual stack in fp16 built so that gradients underflow, trained with one scale or with many.

Each block has an exit of its own: a fixed head that classifies what has come so far. The exits'
losses are summed with weights that fall from block to block, so the gradients of later blocks are
smaller, by more than fp16 and one scale can span. With 32 bits nothing of this matters: Adam's
updates do not depend on the size of a gradient.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.transformer import Block
from trainer.low_precision.gradient_scaling import GradientScales, PerBlockScaling

Scaling = Literal["fp32", "one scale", "per block"]
WIDTH, BLOCKS, CLASSES, SAMPLES = 32, 6, 8, 512
HIGHEST, FALL = 7.0, 8.5
"""Weight of the first exit's loss as a power of two, and by how much it falls at every exit."""
RULE = PerBlockScaling(kind="per_block", start=24, backoff=1, window=1, growth=1 / 50)
"""The paper's bounds, and a faster walk between them: these runs are short."""


class _Product(torch.autograd.Function):
    """x W^T of fp16 numbers, summed in fp32 as tensor cores do, and rounded to fp16.

    Gradients of weights stay as they are summed: only those of activations can underflow.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        half = weight.to(x.dtype)
        ctx.save_for_backward(x, half)
        return (x.float() @ half.float().T).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, half = ctx.saved_tensors
        into = (grad.float() @ half.float()).to(x.dtype)
        return into, grad.float().T @ x.float()


class Branch(nn.Module):
    """Two linear layers with fp32 weights that compute in fp16."""

    def __init__(self, dtype: torch.dtype, rng: torch.Generator) -> None:
        super().__init__()
        self.dtype = dtype
        self.hidden = nn.Parameter(torch.randn(2 * WIDTH, WIDTH, generator=rng) / WIDTH**0.5)
        self.out = nn.Parameter(torch.randn(WIDTH, 2 * WIDTH, generator=rng) / WIDTH**0.5)

    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        hidden = _Product.apply(x.to(self.dtype), self.hidden)
        return _Product.apply(F.gelu(hidden), self.out)


class Stack(nn.Module):
    """Transformer blocks around such branches; the identity path is fp32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(1)
        self.blocks = nn.ModuleList()
        for _ in range(BLOCKS):
            block = Block(WIDTH, 1, WIDTH, causal=True, dropout=0.0)
            block.attention, block.feed_forward = Branch(dtype, rng), Branch(dtype, rng)
            self.blocks.append(block)
        self.register_buffer("heads", torch.randn(BLOCKS, WIDTH, CLASSES, generator=rng) / 4)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """(N, WIDTH) and (N,) to the sum of every exit's losses (BLOCKS,)."""
        losses = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = block(x)
            logits = F.layer_norm(x, (WIDTH,)) @ head
            losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        return torch.stack(losses)


@dataclass
class Course:
    """What a training did."""

    losses: list[float] = field(default_factory=list)
    """Of the last exit, per sample, by update."""
    zeros: list[float] = field(default_factory=list)
    """Share of the gradients of a block's matrices that are 0, by block, over updates taken."""
    moved: list[float] = field(default_factory=list)
    """Largest change of a weight, by block."""
    skipped: int = 0
    scales: list[float] = field(default_factory=list)
    """Binary logarithms at the end: of every branch, or the one."""


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Points, and what a fixed network says of them."""
    rng = torch.Generator().manual_seed(1000 + step)
    teacher = torch.Generator().manual_seed(7)
    first = torch.randn(WIDTH, 64, generator=teacher) / WIDTH**0.5
    x = torch.randn(SAMPLES, WIDTH, generator=rng)
    return x, (F.relu(x @ first) @ torch.randn(64, CLASSES, generator=teacher)).argmax(1)


def train(scaling: Scaling, updates: int) -> Course:
    """Train a fresh stack; the same points and first weights whatever the scaling."""
    stack = Stack(torch.float32 if scaling == "fp32" else torch.float16)
    scales = GradientScales(stack, RULE) if scaling == "per block" else None
    power = RULE.start if scaling == "one scale" else 0.0
    first = [parameter.detach().clone() for parameter in stack.parameters()]
    optimizer = torch.optim.AdamW(stack.parameters(), lr=2e-3, eps=1e-20, weight_decay=0.0)
    weights = 2.0 ** (HIGHEST - FALL * torch.arange(BLOCKS))
    course, counts = Course(), []
    for step in range(updates):
        losses = stack(*batch(step))
        course.losses.append(losses[-1].item() / SAMPLES)
        optimizer.zero_grad()
        (2.0**power * losses @ weights).backward()
        if scales is not None:
            taken = scales.update_scales()
        else:
            taken = all(bool(each.grad.isfinite().all()) for each in stack.parameters())
            for each in stack.parameters():
                each.grad *= 2.0**-power
            if scaling == "one scale":  # the same rule, of the loss
                power += RULE.growth if taken else -RULE.backoff
        course.skipped += not taken
        if taken:
            counts.append([zeros(block) for block in stack.blocks])
            optimizer.step()
    course.zeros = torch.tensor(counts).mean(0).tolist()
    change = [(a - b).abs().max() for a, b in zip(stack.parameters(), first, strict=True)]
    course.moved = torch.stack(change).detach().view(BLOCKS, -1).amax(1).tolist()
    course.scales = [power] if scales is None else [each.power for each in scales.branches]
    return course


def zeros(block: Block) -> float:
    """Share of the gradients of a block's matrices that are 0."""
    grads = [weight.grad for weight in block.parameters() if weight.ndim == 2]
    return sum(float((grad == 0).sum()) for grad in grads) / sum(grad.numel() for grad in grads)
