"""Metrics between two logged steps."""

import time
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from data_pipeline.damage.errors import CAUSES
from trainer import distributed


class MetricAccumulator:
    """Sums of metrics between two logged steps, kept as tensors so that no step waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}
        self._damaged: Counter[str] = Counter()
        self.latest: Mapping[str, float] = {}
        """What the task has measured last; logged until it measures again."""
        self.reset()

    def reset(self) -> None:
        self._sums, self._count = {}, {}
        self._started = time.perf_counter()
        self.waited, self.samples, self.steps = 0.0, 0, 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one micro-batch's metrics (scalars)."""
        for name, value in metrics.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._count[name] = self._count.get(name, 0) + 1

    def add_damaged(self, counts: Mapping[str, int]) -> None:
        """Add the samples of a batch that did not decode, by cause."""
        self._damaged.update(counts)

    def damaged(self) -> dict[str, int]:
        """By cause, those of all processes since the start; every process calls it."""
        counts = torch.tensor(
            [self._damaged[cause] for cause in CAUSES], dtype=torch.int64, device=self._device
        )
        return dict(zip(CAUSES, distributed.total(counts).tolist(), strict=True))

    def read(self) -> dict[str, float]:
        """Means over the interval and all processes, and speeds; every process calls it."""
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] / self._count[name] for name in names])
        seconds = time.perf_counter() - self._started
        values = dict(zip(names, distributed.mean(means.to(self._device)).tolist(), strict=True))
        values["images_per_second"] = self.samples / seconds
        values["steps_per_second"] = self.steps / seconds
        values["data_wait_share"] = self.waited / seconds
        return values
