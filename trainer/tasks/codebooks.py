"""Statistics of codebooks: summed over a step's micro-batches and all processes, then committed."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from models.autoencoders.bottleneck import Latent, Statistics, perplexity
from models.autoencoders.protocols import FirstStage
from trainer import distributed


class Codebooks:
    """The codebook statistics of one optimizer step.

    Nothing is changed during forward, which may run twice and has one process's samples. After the
    update `commit` sums up, so that every process moves its copy of the codebooks alike.
    """

    def __init__(self, model: FirstStage) -> None:
        self._model = model
        self._seen: list[Statistics] = []
        self._usage: dict[str, Tensor] = {}
        self._restarted = 0

    def add(self, latents: Sequence[Latent]) -> None:
        fresh = [latent.statistics for latent in latents if latent.statistics is not None]
        before = self._seen
        self._seen = (
            [joined(*pair) for pair in zip(before, fresh, strict=True)] if before else fresh
        )

    def commit(self, rng: Generator) -> None:
        """Sum over all processes and update the model's codebooks; every process calls it.

        Statistics of a step whose activations overflowed are dropped, as its update is.
        """
        seen = [gathered(each) for each in self._seen]
        self._seen = []
        names = self._model.vocabularies()
        self._usage = {name: each.counts for name, each in zip(names, seen, strict=True)}
        finite = [each.sums.isfinite().all() for each in seen if each.sums is not None]
        if finite and bool(torch.stack(finite).all()):
            self._restarted = self._model.commit(seen, rng)

    def metrics(self) -> dict[str, Tensor]:
        """Use of the codebooks over the global batch of the last finished step.

        Before the first one, over this micro-batch.
        """
        names = self._model.vocabularies()
        usage = self._usage or {
            name: each.counts for name, each in zip(names, self._seen, strict=True)
        }
        values = {}
        for name, counts in usage.items():
            suffix = "" if len(usage) == 1 else f"/{name}"
            values[f"codes_used{suffix}"] = (counts > 0).sum().float()
            values[f"perplexity{suffix}"] = perplexity(counts)
        if any(each.candidates is not None for each in self._seen):
            device = self._seen[0].counts.device
            values["codes_restarted"] = torch.tensor(float(self._restarted), device=device)
        return values


def joined(first: Statistics, second: Statistics) -> Statistics:
    """Of two micro-batches together."""
    return Statistics(
        first.counts + second.counts,
        None if first.sums is None or second.sums is None else first.sums + second.sums,
        None
        if first.candidates is None or second.candidates is None
        else torch.cat([first.candidates, second.candidates]),
    )


def gathered(mine: Statistics) -> Statistics:
    """Of all processes together."""
    return Statistics(
        distributed.total(mine.counts),
        None if mine.sums is None else distributed.total(mine.sums),
        None if mine.candidates is None else distributed.gather_rows(mine.candidates),
    )
