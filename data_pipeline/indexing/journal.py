"""What an interrupted call of `mezzotint data index` has done already."""

from pydantic import BaseModel, ValidationError

from data_pipeline.indexing.tar import IndexedTar, TarTask
from mezzotint.common import storage

_DIRECTORY = ".index"


class _Record(BaseModel, frozen=True, extra="forbid"):
    plan: str
    stamp: str
    """What a store says of the version of the tar."""
    tar: IndexedTar


class Journal:
    """A file for every tar whose index is written, until the manifest is.

    `plan` is the digest of what an index depends on beside its tar.
    """

    def __init__(self, url: str, plan: str) -> None:
        self._url = storage.join(url, _DIRECTORY)
        self._plan = plan
        self._there = set(storage.sizes(self._url)) if storage.exists(self._url) else set[str]()

    def read(self, task: TarTask) -> IndexedTar | None:
        """What was found in a tar that did not change since, if it was read."""
        name = f"{task.file}.json"
        if name not in self._there:
            return None
        try:
            record = _Record.model_validate_json(storage.read_bytes(storage.join(self._url, name)))
        except ValidationError:
            return None
        same = (record.plan, record.stamp) == (self._plan, _stamp(task))
        if not same or not storage.exists(storage.join(task.out, record.tar.entry().index_name)):
            return None
        return record.tar

    def write(self, task: TarTask, found: IndexedTar) -> None:
        record = _Record(plan=self._plan, stamp=_stamp(task), tar=found)
        path = storage.join(self._url, f"{task.file}.json")
        storage.write_bytes(path, record.model_dump_json().encode())

    def end(self) -> None:
        """Delete the files."""
        if storage.exists(self._url):
            storage.remove_tree(self._url)


def _stamp(task: TarTask) -> str:
    status = storage.status(storage.join(task.url, task.file))
    return "" if status is None else f"{status.size} {status.stamp}"
