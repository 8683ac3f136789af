"""Non-finite numbers in training: where they arose, and whether a state may be kept.

Losses are looked at in every update without waiting for the device. Weights, averages and optimizer
states are looked at before they are written.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from trainer import distributed
from trainer.averages.ema import Ema
from trainer.distributed import World
from trainer.engine import Engine

NEVER = 2**62


@dataclass(frozen=True)
class Found:
    """The first update at which something was not finite."""

    name: str
    step: int
    ranks: str
    """` on rank 1`, or empty where all processes had it."""

    def __str__(self) -> str:
        return f"{self.name} is not finite at step {self.step}{self.ranks}"


class FirstNonFinite:
    """The first update at which each of several scalars was not finite, kept on the device."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._first: dict[str, Tensor] = {}

    def look(self, name: str, value: Tensor, step: int) -> None:
        """Take note of a value of update `step` (from 1)."""
        now = torch.where(value.detach().isfinite().all(), NEVER, step)
        before = self._first.get(name)
        self._first[name] = now if before is None else torch.minimum(before, now)

    def read(self, prefix: str = "") -> Found | None:
        """The earliest of those whose names begin so, of all processes; every process calls it."""
        names = [name for name in self._first if name.startswith(prefix)]
        if not names:
            return None
        own = torch.stack([self._first[name].to(self._world.device) for name in names])
        firsts = distributed.minimum(own)
        step, place = (int(each) for each in firsts.min(dim=0))
        if step == NEVER:
            return None
        had = distributed.gather_strings("x" if int(own[place]) == step else "")
        ranks = [str(rank) for rank, text in enumerate(had) if text]
        where = "" if len(ranks) == len(had) else f" on rank {', '.join(ranks)}"
        return Found(names[place], step, where)


def non_finite_state(engines: Mapping[str, Engine], emas: Mapping[str, Ema]) -> str | None:
    """The first weight, average or optimizer state that is not finite; every process calls it."""
    own = ""
    for name, engine in engines.items():
        averages = engine.own_numbers(emas[name].values) if name in emas else ()
        kinds = {
            "weight": engine.own_numbers(engine.local_weights()),
            "buffer": engine.persistent_buffers(),
            "average of": averages,
            "optimizer state of": engine.optimizer_state(),
        }
        for kind, tensors in kinds.items():
            own = own or _first_name(f"{kind} ", f" of {name}", tensors)
    return next(filter(None, distributed.gather_strings(own)), None)


def _first_name(before: str, after: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The name of the first tensor with a number that is not finite, in a phrase, or nothing."""
    names, flags = [], []
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            names.append(name)
            flags.append(_is_finite(tensor.detach()))
    if not flags:
        return ""
    faults = (~torch.stack(flags)).nonzero().flatten().tolist()
    return f"{before}{names[faults[0]]}{after}" if faults else ""


def _is_finite(tensor: Tensor) -> Tensor:
    """A boolean on the device; needs no memory of the tensor's size."""
    return torch.stack(torch.aminmax(tensor)).isfinite().all()


def stop_training(fault: str, saved: int | None) -> UserError:
    """The error that ends a run; `saved` is the step of its newest checkpoint."""
    if saved is None:
        kept = "no checkpoint was saved before that: the same command starts from step 0"
    else:
        kept = f"the checkpoint of step {saved} is finite: the same command resumes from it"
    return UserError(
        f"{fault}; {kept}; if it stops there again, change the settings under another name (such "
        "as a lower optimizer.lr.peak, or engine.precision=fp32)"
    )
