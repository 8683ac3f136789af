"""Random replacements in training, and micro-batches."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor

from data_pipeline.batch import Batch


def micro_batches(batch: Batch, size: int, device: torch.device) -> Iterator[Batch]:
    """Cut a process's share of a batch into micro-batches of `size` samples, on `device`."""

    def cut(tensor: Tensor, first: int) -> Tensor:
        return tensor[first : first + size].to(device, non_blocking=True)

    for first in range(0, len(batch.keys), size):
        yield replace(
            batch,
            keys=batch.keys[first : first + size],
            captions=batch.captions[first : first + size],
            image=None if batch.image is None else cut(batch.image, first),
            text=None if batch.text is None else cut(batch.text, first),
            arrays={name: cut(array, first) for name, array in batch.arrays.items()},
            label=None if batch.label is None else cut(batch.label, first),
            hint=None if batch.hint is None else cut(batch.hint, first),
        )


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
    if share == 0:
        return rows
    kept = torch.rand(len(rows), generator=rng, device=rows.device) >= share
    return torch.where(kept.view((-1,) + (1,) * empty.ndim), rows, empty)


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
