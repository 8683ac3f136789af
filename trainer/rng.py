"""Random replacements in training, and micro-batches."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from data_pipeline.batch import Batch


def micro_batches(batch: Batch, size: int, device: torch.device) -> Iterator[Batch]:
    """Cut a process's share of a batch into micro-batches of `size` samples, on `device`."""

    for first in range(0, len(batch.keys), size):
        rows = slice(first, first + size)
        part = replace(batch, keys=batch.keys[rows], captions=batch.captions[rows])
        yield part.map(partial(_on_device, rows=rows, device=device))


def _on_device(tensor: Tensor, *, rows: slice, device: torch.device) -> Tensor:
    return tensor[rows].to(device, non_blocking=True)


def seed_dropout(rng: Generator) -> None:
    """Seed the global generator, which dropout uses, from the micro-batch's own generator."""
    torch.manual_seed(int(torch.randint(2**62, (), generator=rng, device=rng.device)))


def drop_text(text: Tensor, share: float, rng: Generator) -> Tensor:
    """Captions (B, L) with a random `share` of the rows emptied (all pads, id 0)."""
    if share == 0:
        return text
    kept = torch.rand(len(text), generator=rng, device=text.device) >= share
    return text * kept[:, None]


def drop_rows(rows: Tensor, empty: Tensor, share: float, rng: Generator) -> Tensor:
    """Rows (B, ...) with a random `share` of them replaced by `empty` (...)."""
    dropped = dropped_rows(len(rows), share, rng, rows.device)
    return rows if dropped is None else replaced_rows(rows, empty, dropped)


def dropped_rows(count: int, share: float, rng: Generator, device: torch.device) -> Tensor | None:
    """Which of `count` rows are dropped, (count,) bool: a random `share`; None: none ever."""
    if share == 0:
        return None
    return torch.rand(count, generator=rng, device=device) < share


def replaced_rows(rows: Tensor, empty: Tensor, dropped: Tensor) -> Tensor:
    """Rows (B, ...) with those that are `dropped` (B,) replaced by `empty` (...)."""
    return torch.where(dropped.view((-1,) + (1,) * empty.ndim), empty, rows)


def replace_codes(codes: Tensor, share: float, vocab: int, rng: Generator) -> Tensor:
    """Codes (B, N) with a random `share` of them replaced by random ones of `vocab`."""
    if share == 0:
        return codes
    replaced = torch.rand(codes.shape, generator=rng, device=codes.device) < share
    random = torch.randint(vocab, codes.shape, generator=rng, device=codes.device)
    return torch.where(replaced, random, codes)


def drop_class(label: Tensor, share: float, null: int, rng: Generator) -> Tensor:
    """Classes (B,) with a random `share` of them replaced by `null`, "no class"."""
    if share == 0:
        return label
    dropped = torch.rand(len(label), generator=rng, device=label.device) < share
    return label.masked_fill(dropped, null)
