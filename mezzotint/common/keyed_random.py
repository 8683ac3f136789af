"""Random generators keyed by what their numbers are for, not by the order of their use.

The same labels give the same numbers in every process, in a batch of any size.
"""

from typing import TYPE_CHECKING

from mezzotint.common.digests import sha256

if TYPE_CHECKING:
    import torch


def keyed_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed: the first bits of the SHA-256 of `seed` and `labels`."""
    digest = sha256("\x1f".join(map(str, (seed, *labels))))
    return int(digest[:16], 16) >> 1


def keyed_generator(
    seed: int, *labels: str | int, device: "torch.device | str" = "cpu"
) -> "torch.Generator":
    """A generator on `device`, seeded by `keyed_seed`."""
    import torch  # deferred: importing mezzotint loads no torch

    return torch.Generator(device).manual_seed(keyed_seed(seed, *labels))
