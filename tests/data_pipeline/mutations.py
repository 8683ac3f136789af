"""Random damage to tar archives."""

from collections.abc import Iterator

import numpy as np

BLOCK = 512
KINDS = ("bytes", "cut", "extended", "zeros", "swapped")


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Kinds of damage, in turns, and the archive `content` with it."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        kind, changed = KINDS[number % len(KINDS)], content
        while changed == content:
            changed = mutated(content, kind, rng)
        yield kind, changed


def mutated(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    size = len(content)
    if kind == "cut":
        return content[: int(rng.integers(0, size))]
    if kind == "extended":
        return content + rng.bytes(int(rng.integers(1, 4096)))
    changed = np.frombuffer(content, dtype=np.uint8).copy()
    if kind == "bytes":
        places = rng.integers(0, size, int(rng.integers(1, 9)))
        changed[places] ^= rng.integers(1, 256, len(places), dtype=np.uint8)
    elif kind == "zeros":
        start = int(rng.integers(0, size // BLOCK)) * BLOCK
        changed[start : start + BLOCK] = 0
    else:
        blocks = changed.reshape(-1, BLOCK)
        first, second = rng.integers(0, len(blocks), 2)
        blocks[[first, second]] = blocks[[second, first]]
    return changed.tobytes()
