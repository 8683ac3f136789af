"""open_clip's own tokenizer of a checkpoint."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from mezzotint.common.errors import UserError
from models.pretrained.lookup import KnownCheckpoint, needs_hugging_face


class OpenClipTokenizer:
    """Begin of text, pieces, cut so that the end of text fits, and padding with 0."""

    def __init__(self, known: KnownCheckpoint) -> None:
        """Raises:
        UserError: the architecture takes a tokenizer from Hugging Face.
        """
        import open_clip

        if needs_hugging_face(known.shape, known.title):
            raise UserError(
                f"architecture '{known.title}' takes a tokenizer from Hugging Face; choose one "
                "with open_clip's own tokenizer (e.g. ViT-B-32)"
            )
        with quiet():
            self._tokenizer = open_clip.get_tokenizer(known.name)
        self.length = int(self._tokenizer.context_length)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, length) int64."""
        return self._tokenizer(list(captions))

    def lost(self, caption: str) -> str:
        """The end of a caption that is cut; empty where it fits."""
        ids = self._tokenizer.encode(caption)
        return str(self._tokenizer.decode(ids[self.length - 2 :])).strip()


@contextmanager
def quiet() -> Iterator[None]:
    """Without open_clip's warning that a model without weights is random."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
