"""How many bytes training holds per process, and writes per checkpoint.

What DeepSpeed 0.19 keeps at each ZeRO stage (arXiv 1910.02054) as `trainer.engine` configures it,
with the averages of `trainer.averages.ema`. Activations are not counted. Real engines are measured
against these numbers in tests/integration/test_footprint.py.
"""

from dataclasses import astuple, dataclass
from typing import Literal

from torch import nn

from trainer.engine_config import stored_dtype
from trainer.low_precision.accumulation import accumulates_here
from trainer.low_precision.adamw import CHUNK
from trainer.low_precision.fp32_params import matrices
from trainer.low_precision.powersgd import PowerSGDConfig
from trainer.optimizers.schedules import Moments
from trainer.recipe import Precision, Recipe

FLOAT = 4
"""Bytes of a number in fp32: master weights, moments and averages are kept in it."""
BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces together in one buffer (reduce_bucket_size)."""
LIVE = 1_000_000_000
"""Weights that ZeRO-3 may keep whole at once (max_live_parameters)."""
SMALL = 100_000
"""Weights up to this size stay whole under ZeRO-3 (param_persistence_threshold)."""


@dataclass(frozen=True)
class Sizes:
    """Trainable numbers of one part."""

    weights: tuple[int, ...]
    """Of each parameter."""
    largest_layer: int
    """Of the layer that has most."""
    matrices: tuple[int, ...]
    """Weights whose moments may be 16-bit."""

    @property
    def total(self) -> int:
        return sum(self.weights)

    @property
    def small(self) -> int:
        """Those in parameters that ZeRO-3 does not shard for long."""
        return sum(size for size in self.weights if size <= SMALL)

    @property
    def inner(self) -> int:
        """Numbers whose moments may be 16-bit."""
        return sum(self.matrices)


def padded(size: int, world: int) -> int:
    """Length of the flattened weights with the padding of ZeRO 1 and 2."""
    unit = 2 * world
    return -(-size // unit) * unit


def sizes(part: nn.Module) -> Sizes:
    """Count a part, which may be on the meta device."""
    return Sizes(
        tuple(weight.numel() for weight in part.parameters() if weight.requires_grad),
        max(
            sum(weight.numel() for weight in module.parameters(recurse=False))
            for module in part.modules()
        ),
        tuple(weight.numel() for weight in matrices(part)),
    )


@dataclass(frozen=True)
class States:
    """Settings that the bytes of one part depend on; `precision` is not auto."""

    zero: int
    precision: Precision
    averages: int
    """Kept of every weight."""
    moments: Moments = "fp32"
    master: Literal["fp32", "bf16"] = "fp32"
    errors: int = 0
    """Bytes of a number in the error buffers of compression; 0 without any."""
    in_backward: bool = False
    """Whether weights are updated inside backward, and nothing is kept in fp32."""
    batch: int = 1
    micro_batch: int | None = None
    """None: a process takes its whole share at once."""

    def accumulates(self, world: int) -> bool:
        """Whether 16-bit gradients of several micro-batches are summed, which is done in fp32."""
        rounds = self.micro_batch is not None and self.micro_batch * world < self.batch
        return rounds and self.number < FLOAT

    @property
    def number(self) -> int:
        """Bytes of a weight as the network computes with it."""
        return stored_dtype(self.precision).itemsize

    @property
    def wrapped(self) -> bool:
        """Whether the optimizer has weights of its own."""
        return self.zero > 0 or (self.number < FLOAT and not self.in_backward)

    @property
    def master_bytes(self) -> int:
        """Bytes of a weight of its own."""
        return 2 if self.master == "bf16" else FLOAT

    @property
    def moment_bytes(self) -> int:
        """Bytes of a moment of a matrix."""
        return FLOAT if self.moments == "fp32" else 2

    def groups(self, part: Sizes) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Weights that the optimizer keeps together, and the bytes of a moment of theirs."""
        if self.moments == "fp32" or self.in_backward:
            return ((part.weights, self.moment_bytes),)
        fp32_params = list(part.weights)
        for size in part.matrices:
            fp32_params.remove(size)
        return ((part.matrices, self.moment_bytes), (tuple(fp32_params), FLOAT))


def states(recipe: Recipe, part: str, precision: Precision) -> States:
    """The settings of a part of a recipe."""
    errors, compression = 0, recipe.engine.compression
    if isinstance(compression, PowerSGDConfig):
        errors = FLOAT if compression.errors == "fp32" else 2
    return States(
        zero=recipe.engine.zero_of(part),
        precision=precision,
        averages=0 if recipe.ema is None else recipe.ema.tracks,
        moments=recipe.optimizer_of(part).moments,
        master=recipe.engine.master_dtype,
        errors=errors,
        in_backward=recipe.engine.update == "in_backward",
        batch=recipe.batch,
        micro_batch=recipe.micro_batch,
    )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process, each item at its maximum."""

    weights: int
    """What the network computes with."""
    master: int
    """Weights beside them that the optimizer updates."""
    moments: int
    """AdamW's two."""
    averages: int
    """The moving averages."""
    gradients: int
    """Between backward and update."""
    buckets: int
    """Buffers to reduce gradients in."""
    gathered: int
    """ZeRO-3: weights that are gathered for a while, with those that are never sharded."""
    update: int
    """fp32 copies made during an update: of gradients for AdamW, of a weight for the averages."""
    errors: int
    """Error feedback of compressed gradients."""

    @property
    def total(self) -> int:
        """The sum, an upper bound: not all of it is held at the same time."""
        return sum(astuple(self))


def estimate_memory(part: Sizes, how: States, world: int) -> MemoryEstimate:
    """Bytes that each of `world` processes holds for one part."""
    number, zero = how.number, how.zero
    groups = how.groups(part)
    match zero:
        case 0:
            rows = shares = [sum(weights) for weights, _ in groups]
        case 3:
            rows = shares = [_shard(weights, world) for weights, _ in groups]
        case _:
            rows = [padded(sum(weights), world) for weights, _ in groups]
            shares = [row // world for row in rows]
    kept, share = sum(rows), sum(shares)
    averages = (_shard(part.weights, world) if zero == 3 else part.total) * FLOAT
    largest = max(part.weights) * FLOAT
    whole = min(part.total, part.small + LIVE + part.largest_layer) if zero == 3 else 0
    return MemoryEstimate(
        weights=kept * number,
        master=share * how.master_bytes if how.wrapped else 0,
        moments=2 * sum(size * each for size, (_, each) in zip(shares, groups, strict=True)),
        averages=averages * how.averages,
        gradients=_gradient_bytes(part, how, world, share),
        buckets=BUCKET * _bucket_bytes(zero, how.precision),
        gathered=whole * number,
        update=max(
            share * how.master_bytes if how.wrapped else 0,
            largest if how.averages and number < FLOAT else 0,
            (12 if how.in_backward else 8) * CHUNK * FLOAT if how.moments != "fp32" else 0,
        ),
        errors=part.inner * how.errors,
    )


def _gradient_bytes(part: Sizes, how: States, world: int, share: int) -> int:
    """fp32 sums where there are several micro-batches; of all weights where ZeRO shards none."""
    if how.in_backward:
        return part.largest_layer * how.number
    if not how.accumulates(world):
        return share * how.number
    sums_here = accumulates_here(how.zero, stored_dtype(how.precision), micro_batches=2)
    return (part.total if sums_here else share) * FLOAT


def start_bytes(part: Sizes, how: States, world: int) -> int:
    """Bytes that a process holds of a part before its engine shards it.

    The whole part in fp32; under ZeRO-3 and for updates inside backward, where parameters are
    filled and stored one by one, what is kept of them and twice the largest parameter.
    """
    if how.zero < 3 and not how.in_backward:
        return part.total * FLOAT
    return _shard(part.weights, world) * how.number + 2 * FLOAT * max(part.weights)


def _shard(weights: tuple[int, ...], world: int) -> int:
    """Numbers per process under ZeRO-3, which divides every parameter evenly."""
    return sum(-(-size // world) for size in weights)


def _bucket_bytes(zero: int, precision: Precision) -> int:
    """Bytes per element of the buckets; under autocast there is one for each type."""
    match zero, precision:
        case 0, _:
            return 0
        case 3, "autocast_bf16":
            return FLOAT + 2
        case _, "autocast_bf16":
            return 2 * FLOAT
        case _:
            return stored_dtype(precision).itemsize


def checkpoint_bytes(part: Sizes, how: States, world: int) -> int:
    """Bytes of one part in a checkpoint, all processes together, without its small files.

    Under ZeRO-3 only the master weights are stored.
    """
    each = (how.number if how.zero < 3 else 0) + (how.master_bytes if how.wrapped else 0)
    moments = 2 * sum(sum(weights) * number for weights, number in how.groups(part))
    averages = part.total * FLOAT * how.averages
    return part.total * each + moments + averages + world * part.inner * how.errors
