"""AdamW (arXiv 1711.05101) that an update can be held back from."""

from collections.abc import Callable
from typing import Any

import torch


class SkippableAdamW(torch.optim.AdamW):
    """torch's own, with moments as wide as the weights it updates."""

    skip = False
    """While set, `step` leaves weights and moments as they are."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # noqa: ANN401 - as torch's
        return None if self.skip else super().step(closure)
