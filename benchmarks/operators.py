"""Where the time of a piece of work goes, by kinds of operators."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

KINDS = {
    "convolution": ("conv",),
    "attention": ("attention", "softmax", "bmm", "_ByHeads"),
    "products": ("::mm", "addmm", "linear"),
}
"""To parts of the names of torch's operators. On a CPU convolutions and products are oneDNN's for
everybody, so that no network that computes the same can be faster by more than the rest."""


def milliseconds(work: Callable[[], object], times: int = 4) -> dict[str, float]:
    """Of one call, by kind; what belongs to no kind is `rest`."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(times):
            work()
    found = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in recorded.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if _is_of(event.key, parts)), "rest")
        found[kind] += event.self_cpu_time_total / times / 1e3
    return found


def table(ours: dict[str, float], peers: dict[str, float]) -> dict[str, object]:
    """Both, and how many times as fast we were if all but convolutions took no time."""
    bound = sum(peers.values()) / ours["convolution"]
    return {"mezzotint_ms": ours, "peer_ms": peers, "bound_by_convolutions": bound}


def _is_of(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)
