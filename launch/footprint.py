"""How many bytes training holds per process, and writes per checkpoint.

What DeepSpeed 0.19 keeps at each ZeRO stage (arXiv 1910.02054) as `trainer.engine` configures it,
with the averages of `trainer.ema`. Activations are not counted. Real engines are weighed against
these numbers in tests/integration/test_footprint.py.
"""

from dataclasses import dataclass, fields

from torch import nn

from trainer.recipe import Precision

FLOAT = 4
"""Bytes of a number in fp32: master weights, moments and averages are kept in it."""
BUCKET = 500_000_000
"""Gradients that DeepSpeed reserves room for to reduce them together (reduce_bucket_size)."""
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

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.weights)

    @property
    def small(self) -> int:
        """Those in parameters that ZeRO-3 does not shard for long."""
        return sum(size for size in self.weights if size <= SMALL)

    def shard(self, world: int) -> int:
        """What one of `world` processes keeps under ZeRO-3: every parameter is cut evenly."""
        return sum(-(-size // world) for size in self.weights)

    def padded(self, world: int) -> int:
        """All weights in one row whose shares begin at even places (ZeRO 1 and 2)."""
        unit = 2 * world
        return -(-self.total // unit) * unit


def sizes(part: nn.Module) -> Sizes:
    """Count a part, which may be on the meta device."""
    return Sizes(
        tuple(weight.numel() for weight in part.parameters() if weight.requires_grad),
        max(
            sum(weight.numel() for weight in module.parameters(recurse=False))
            for module in part.modules()
        ),
    )


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process; each of the lines at its highest."""

    weights: int
    """What the network computes with."""
    master: int
    """fp32 weights beside them that the optimizer updates."""
    moments: int
    """AdamW's two, in fp32."""
    averages: int
    """The exponential moving average."""
    gradients: int
    """Between backward and update."""
    buckets: int
    """Room to reduce gradients in."""
    gathered: int
    """ZeRO-3: weights that are whole for a while, with those that always are."""
    update: int
    """fp32 copies made during an update: of gradients for AdamW, of weights for the averages."""

    @property
    def total(self) -> int:
        """All of it; not all is there at the same moment, so this is an upper bound."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: "Footprint") -> "Footprint":
        """Two parts in one process."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Footprint(*(one + two for one, two in pairs))


NOTHING = Footprint(0, 0, 0, 0, 0, 0, 0, 0)


def footprint(
    part: Sizes, *, zero: int, precision: Precision, world: int, averaged: bool
) -> Footprint:
    """What each of `world` processes holds for one part; `precision` is not auto."""
    number = stored_bytes(precision)
    match zero:
        case 0:
            kept, share = part.total, part.total
        case 3:
            kept, share = part.shard(world), part.shard(world)
        case _:
            kept, share = part.padded(world), part.padded(world) // world
    averages = (part.shard(world) if zero == 3 else part.total) * FLOAT if averaged else 0
    wrapped = zero > 0 or number < FLOAT
    whole = min(part.total, part.small + LIVE + part.largest_layer) if zero == 3 else 0
    return Footprint(
        weights=kept * number,
        master=share * FLOAT if wrapped else 0,
        moments=2 * share * FLOAT,
        averages=averages,
        gradients=share * number,
        buckets=BUCKET * _bucket_bytes(zero, precision),
        gathered=whole * number,
        update=max(share * FLOAT if wrapped else 0, averages if number < FLOAT else 0),
    )


def stored_bytes(precision: Precision) -> int:
    """Bytes of a weight as the network computes with it."""
    return 2 if precision in ("bf16", "fp16") else FLOAT


def _bucket_bytes(zero: int, precision: Precision) -> int:
    """Bytes per place of the buckets; under autocast there is one for either kind of number."""
    match zero, precision:
        case 0, _:
            return 0
        case 3, "autocast_bf16":
            return FLOAT + 2
        case _, "autocast_bf16":
            return 2 * FLOAT
        case _:
            return stored_bytes(precision)


def checkpoint_bytes(part: Sizes, *, zero: int, precision: Precision, averaged: bool) -> int:
    """Bytes of one part in a checkpoint, all processes together, without its small files.

    Under ZeRO-3 the master weights stand for the weights.
    """
    number = stored_bytes(precision)
    wrapped = zero > 0 or number < FLOAT
    each = (number if zero < 3 else 0) + (FLOAT if wrapped else 0) + 2 * FLOAT
    return part.total * (each + (FLOAT if averaged else 0))
