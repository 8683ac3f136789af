"""Interleaved timing and the peak of live tensor bytes."""

import argparse
import json
import os
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SPREAD = 0.3
"""Above this (90th over 10th percentile, less one) no verdict is given."""
FEWEST = 7
"""Rounds of which a verdict is given."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing over all rounds."""

    median: float
    minimum: float
    spread: float
    cpu: float
    """Median of the processor's seconds: what is left of a ratio where others use the cores."""

    @classmethod
    def of(cls, seconds: list[float], cpu: list[float]) -> "Timing":
        """From every round's seconds."""
        ordered = sorted(seconds)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        return cls(statistics.median(ordered), ordered[0], high / low - 1, statistics.median(cpu))


@dataclass(frozen=True)
class Row:
    """One comparison; `ratio` says how many times better ours is."""

    name: str
    ours: float
    """Median seconds."""
    peer: float
    goal: float
    ratio: float
    ratio_of_minimum: float
    ratio_of_cpu_time: float
    spread: float
    verdict: str

    @classmethod
    def of(cls, name: str, ours: Timing, peer: Timing, goal: float, rounds: int) -> "Row":
        """No verdict of few rounds, nor where either spreads too much."""
        ratio = peer.median / ours.median
        spread = max(ours.spread, peer.spread)
        verdict = "reached" if ratio >= goal else "missed"
        if spread > SPREAD:
            verdict = "none, spread too large"
        if rounds < FEWEST:
            verdict = f"none of fewer than {FEWEST} rounds"
        return cls(
            name, ours.median, peer.median, goal, ratio,
            peer.minimum / ours.minimum, peer.cpu / ours.cpu, spread,
            verdict,
        )  # fmt: skip

    @classmethod
    def of_counts(cls, name: str, ours: float, peer: float, goal: float) -> "Row":
        """Of figures without noise, such as bytes: less is better."""
        ratio = peer / ours
        verdict = "reached" if ratio >= goal else "missed"
        return cls(name, ours, peer, goal, ratio, ratio, ratio, 0.0, verdict)


def as_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows for people."""
    return [
        f"{row['name']}: {row['ratio']:.2f} x (goal {row['goal']:.2f}; of the least "
        f"{row['ratio_of_minimum']:.2f}, of processor time {row['ratio_of_cpu_time']:.2f}; "
        f"spread {row['spread']:.2f}): {row['verdict']}"
        for row in rows
    ]


def run_command(
    description: str, parts: Sequence[str], measure: Callable[..., dict[str, Any]]
) -> None:
    """The command of a benchmark: `measure(quick=..., only=...)`, printed and perhaps written.

    `only` is one of `parts`, or None for all of them.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--only", choices=parts, help="one part")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything there")
    parser.add_argument("--threads", type=int, help="torch's threads")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(quick=options.quick, only=options.only)
    found["load_at_the_end"] = machine()["load"]
    parts_found = [part for part in found.values() if isinstance(part, dict) and "rows" in part]
    rows = [row for part in parts_found for row in part.pop("rows")]
    if options.json:
        tree = json.dumps({**found, "rows": rows}, indent=1)
        options.json.write_text(tree + "\n", encoding="utf-8")
    short = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.4g}"))
    print("\n".join([json.dumps(short, indent=1), *as_lines(rows)]))


def interleaved(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Everything once per round, in turning order, after one round that does not count."""
    names = list(work)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started, busy = time.perf_counter(), time.process_time()
            work[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - busy)
    return {name: Timing.of(seconds[name], cpu[name]) for name in names}


class Peak(TorchDispatchMode):
    """The most bytes of tensors made inside it that live at one time.

    Counts storages at every operator, so what a kernel allocates inside itself is not seen.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        """`held` count from the beginning until they are freed, so nothing else may keep them."""
        super().__init__()
        self.live = 0
        self.most = 0
        self._known: set[int] = set()
        for tensor in held:
            storage = tensor.untyped_storage()
            self._note(storage, storage.nbytes())

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._note(storage, storage.nbytes())
        return result

    def _note(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.most = max(self.most, self.live)

        def gone() -> None:
            self.live -= size
            self._known.discard(key)

        weakref.finalize(storage, gone)


def peak_bytes(work: Callable[[], object], held: Iterable[torch.Tensor] = ()) -> int:
    """The peak of live bytes that one call adds to what was there, and of what is `held`."""
    with Peak(held) as peak:
        work()
    return peak.most


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "cpu": models[0] if models else "unknown",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "torch": torch.__version__,
    }


def as_table(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    """For JSON."""
    return {name: asdict(timing) for name, timing in timings.items()}
