"""Verifying a set: every shard against the manifest, every caption and array, every image."""

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.cache import stored_digest
from data_pipeline.manifest import Manifest
from data_pipeline.packing.shard_writer import Progress
from data_pipeline.sample_check import sample_faults
from data_pipeline.sets.stored_set import StoredSet, read_set
from data_pipeline.shards import TARS, index_again, unlisted_files
from data_pipeline.tar import index_tar, local_tar
from data_pipeline.text.cached_features import CachedTextFeatures
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import CredentialsError, TransientError


@dataclass(frozen=True)
class VerifyReport:
    """A set's manifest, and every difference from it as a sentence."""

    manifest: Manifest
    problems: tuple[str, ...]
    unlisted: tuple[str, ...] = ()
    """Files in the directory that belong to no shard; a tar among them is also a problem."""


def verify(
    url: str, progress: Progress | None = None, *, images: bool = False, workers: int = 8
) -> VerifyReport:
    """Compare every shard of a set with its manifest, byte for byte, and read every sample.

    Captions and arrays are decoded, with `images` all images too; `workers` samples at a time.

    Raises:
        UserError: There is no manifest, or the store cannot be read.
    """
    stored = read_set(url)
    manifest = stored.manifest
    present = storage.sizes(stored.shards_url, manifest.shard_columns.name)
    unlisted = unlisted_files(stored, present)
    problems = [
        f"{storage.join(stored.shards_url, name)}: not in the manifest, so it is not read; delete "
        f"or move it, or {index_again(url)}"
        for name in unlisted
        if name.endswith(TARS)
    ]
    problems += _empty_features(url, manifest)
    done = 0
    for number, shard in enumerate(manifest.shards):
        path = storage.join(stored.shards_url, shard.name)
        if shard.name not in present:
            problems.append(f"{path}: missing")
        elif present[shard.name] != shard.bytes:
            problems.append(f"{path}: {present[shard.name]:,} bytes instead of {shard.bytes:,}")
        else:
            differences = _differences(path, stored, number, images=images, workers=workers)
            for problem in differences:
                problems += [] if problem is None else [problem]
                done += 1
                if progress is not None:
                    progress(min(done, manifest.sample_count), manifest.sample_count)
    if progress is not None and done < manifest.sample_count:
        progress(manifest.sample_count, manifest.sample_count)
    return VerifyReport(manifest, tuple(problems), tuple(unlisted))


def _empty_features(url: str, manifest: Manifest) -> list[str]:
    """What is wrong with the file of an empty caption's features, of a set that has one."""
    if manifest.text_features is None:
        return []
    try:
        CachedTextFeatures.of_sets([(url, manifest)])
    except (CredentialsError, TransientError):
        raise
    except UserError as error:
        return [str(error)]
    return []


def _differences(
    path: str, stored: StoredSet, number: int, *, images: bool, workers: int
) -> Iterator[str | None]:
    """Sentences, and None for every sample that is as it should be."""
    try:
        samples = stored.indexes.of(number).samples()
        with local_tar(path) as tar:
            if stored_digest(path, tar.stored) != stored.manifest.shards[number].sha256:
                yield f"{path}: its sha256 differs from the manifest"
                return
            found = {one.key: one.members for one in index_tar(tar.plain, path).samples}
            moved = [one for one in samples if found.get(one.key) != one.members]
            yield from (
                f"{path}: '{one.key}' is not at the position in the manifest" for one in moved
            )
            listed = [one for one in samples if found.get(one.key) == one.members]
            for fault in sample_faults(tar.plain, listed, images=images, workers=workers):
                yield None if fault is None else f"{path}: {fault}"
    except (CredentialsError, TransientError):
        raise
    except UserError as error:
        yield str(error)
