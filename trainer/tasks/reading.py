"""The frozen encoder of a task's captions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_pipeline.published_text import tokenizer_of
from models import frozen_text
from models.frozen_text import CaptionReader
from models.text_source import TextSource


class Reading:
    """Captions to features, by an encoder that is read from disk when it is first needed.

    So a recipe can be checked on a machine that has no copy of it. It is no part of the task: not
    trained, not in checkpoints, and every process holds its own.
    """

    def __init__(self, source: TextSource) -> None:
        self._source = source
        self._reader: CaptionReader | None = None
        self._empty: Tensor | None = None

    def __call__(self, captions: Sequence[str], device: torch.device) -> Tensor:
        """Features (B, L, C) in fp32 on a device; those of the empty caption are kept.

        Raises:
            ModelError: there is no such encoder.
        """
        if self._reader is None:
            self._reader = frozen_text.load(self._source, tokenizer_of).to(device)
            self._empty = self._reader(("",))
        if tuple(captions) == ("",) and self._empty is not None:
            return self._empty
        return self._reader(captions)
