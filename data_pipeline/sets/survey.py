"""What is only known once the indexes of all shards are read, kept on this node."""

import io
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.sets.stored_set import StoredSet
from mezzotint.common import files
from mezzotint.common.digests import sha256

_log = logging.getLogger(__name__)

_READERS = 16
"""Indexes that are read at once."""

Answer = Callable[[int], int | NDArray[np.int64]]
"""Of the shard of a number."""


@dataclass(frozen=True)
class Survey:
    """Reads the indexes of a set, and keeps what was found in `directory`, if it is given.

    Of a set of format 1, whose indexes are in memory, nothing is kept.
    """

    stored: StoredSet
    directory: Path | None = None

    def of(self, shards: Sequence[int], question: str, answer: Answer) -> NDArray[np.int64]:
        """The answers for these shards; `question` says, with the set, what they depend on.

        (S,) of integers, (S, ...) of arrays of one shape.
        """
        manifest = self.stored.manifest
        if self.directory is None or manifest.shard_columns.index is None:
            return self._read(shards, answer)
        path = self.directory / f"{sha256(f'{manifest.fingerprint} {question}')}.npy"
        if path.exists():
            found: NDArray[np.int64] = np.load(path, allow_pickle=False)
            return found
        found, content = self._read(shards, answer), io.BytesIO()
        np.save(content, found, allow_pickle=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(path, content.getvalue())
        except OSError as error:
            _log.warning("%s: cannot be written (%s); the next process counts again", path, error)
        return found

    def _read(self, shards: Sequence[int], answer: Answer) -> NDArray[np.int64]:
        with ThreadPoolExecutor(_READERS) as pool:
            return np.array(list(pool.map(answer, shards)), dtype=np.int64)
