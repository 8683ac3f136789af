"""Loading batches, with other samples in place of those that do not decode."""

import logging
from collections import Counter
from dataclasses import replace
from functools import partial

from torch.utils.data import Dataset as TorchDataset

from data_pipeline.batch import Batch, Sample, collate
from data_pipeline.buckets.batches import SampleRef
from data_pipeline.damage.errors import DamagedSampleError
from data_pipeline.dataset import Dataset
from data_pipeline.geometry.frame import Shape
from data_pipeline.sample_order import substitutes
from mezzotint.common.errors import UserError

_log = logging.getLogger(__name__)

_ATTEMPTS = 16
"""Samples that are tried in place of a damaged one."""
_LOGGED = 20
"""Damaged samples that a process names."""


class BatchLoader(TorchDataset[Batch | UserError]):
    """Loads batches. UserErrors are returned: torch's workers would wrap their message.

    With `data.max_damaged`, another sample of the same shard takes the place of one that does not
    decode. Which one follows from (seed, epoch, sample), so that it is the same for any number of
    processes.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed
        self._named: set[str] = set()

    def __getitem__(self, item: tuple[Shape | None, list[SampleRef]]) -> Batch | UserError:
        damaged: Counter[str] = Counter()
        load = partial(self._load, shape=item[0], damaged=damaged)
        try:
            batch = collate([load(index, epoch) for epoch, index in item[1]])
        except UserError as error:
            return error
        return replace(batch, damaged=damaged) if damaged else batch

    def _load(
        self, index: int, epoch: int, *, shape: Shape | None, damaged: Counter[str]
    ) -> Sample:
        data, seed = self._dataset, self._seed
        try:
            return data.sample(index, seed=seed, epoch=epoch, shape=shape)
        except DamagedSampleError as error:
            if not data.config.max_damaged:
                raise
            damaged[error.cause] += 1
            self._name(error)
            damaged_too = error
        first, count = data.shard_of(index)
        for other in substitutes(index - first, count, seed, epoch, index)[:_ATTEMPTS]:
            try:
                return data.sample(first + other, seed=seed, epoch=epoch, shape=shape)
            except DamagedSampleError as error:
                damaged_too = error
        raise UserError(
            f"{damaged_too}; up to {_ATTEMPTS} other samples of its shard are damaged too: "
            f"`mezzotint data verify {data.config.url} --images` names all of them"
        )

    def _name(self, error: DamagedSampleError) -> None:
        text = str(error)
        if text not in self._named and len(self._named) < _LOGGED:
            self._named.add(text)
            _log.warning("%s; another sample of its shard is taken (data.max_damaged)", text)
