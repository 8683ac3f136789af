"""The frozen encoder of a task's captions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data_pipeline.text.t5_tokenizer import tokenizer_of
from models import frozen_text
from models.frozen_text import FrozenTextEncoder
from models.text_source import TextSource
from trainer.tasks.conditions import TextFeatures


class LazyTextEncoder:
    """Captions to features, by an encoder that is read from disk when it is first needed.

    So a recipe can be checked on a machine that has no copy of it. It is no part of the task: not
    trained, not in checkpoints, and every process holds its own.
    """

    def __init__(self, source: TextSource) -> None:
        self._source = source
        self._opened: tuple[FrozenTextEncoder, Tensor] | None = None

    def __call__(self, captions: Sequence[str], device: torch.device) -> TextFeatures:
        """The captions' features on a device, and those of an empty one, which are kept.

        Raises:
            UserError: there is no such encoder.
        """
        if self._opened is None:
            reader = frozen_text.load(self._source, tokenizer_of).to(device)
            self._opened = reader, reader(("",))[0]
        reader, empty = self._opened
        return TextFeatures(reader(captions), empty)
