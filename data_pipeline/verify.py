"""Indexing existing tar sets, and verifying sets against their manifest."""

from dataclasses import dataclass

from pydantic import ValidationError

from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from data_pipeline.packing.shard_writer import Progress
from data_pipeline.packing.source import json_attributes
from data_pipeline.tar import index_tar, local_tar, read_member
from mezzotint.common import storage
from mezzotint.common.digests import sha256_file
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import CredentialsError, TransientError


@dataclass(frozen=True)
class VerifyReport:
    """A set's manifest, and every difference from it as a sentence."""

    manifest: Manifest
    problems: tuple[str, ...]


def verify(url: str, progress: Progress | None = None) -> VerifyReport:
    """Compare every shard of a set with its manifest, byte for byte.

    Raises:
        UserError: There is no manifest, or the store cannot be read.
    """
    manifest = read_manifest(url)
    present = storage.sizes(url, [shard.name for shard in manifest.shards])
    problems: list[str] = []
    for number, shard in enumerate(manifest.shards, 1):
        path = storage.join(url, shard.name)
        if shard.name not in present:
            problems.append(f"{path}: missing")
        elif present[shard.name] != shard.bytes:
            problems.append(f"{path}: {present[shard.name]:,} bytes instead of {shard.bytes:,}")
        else:
            problems += _differences(path, shard)
        if progress is not None:
            progress(number, len(manifest.shards))
    return VerifyReport(manifest, tuple(problems))


def index(
    url: str, *, name: str, licence: str = "unknown", progress: Progress | None = None
) -> tuple[Manifest, tuple[str, ...]]:
    """Write the manifest of an existing webdataset tar set, in place.

    Strings and integers of KEY.json become attributes. Samples without a caption, or without an
    image or array, are not part of the set.

    Returns:
        The manifest, and the excluded samples with the reason.

    Raises:
        UserError: There are no tars, one is damaged, or a key occurs twice.
    """
    names = sorted(name for name in storage.sizes(url) if name.endswith((".tar", ".tar.gz")))
    if not names:
        raise UserError(f"{url}: no .tar or .tar.gz file in this directory")
    excluded: list[str] = []
    shards: list[ShardEntry] = []
    for number, file in enumerate(names, 1):
        shards.append(_index_shard(url, file, excluded))
        if progress is not None:
            progress(number, len(names))
    fields = {extension for shard in shards for one in shard.samples for extension in one.members}
    try:
        manifest = Manifest(
            name=name,
            fields={extension: "as found" for extension in sorted(fields)},
            licence=licence,
            provenance={"indexed in place": url},
            shards=tuple(shards),
        )
    except ValidationError as error:
        raise UserError(
            f"{url}: {error.errors()[0]['msg']}; copy the set with `mezzotint data pack {url} OUT`"
        ) from error
    write_manifest(url, manifest)
    return manifest, tuple(excluded)


def _differences(path: str, shard: ShardEntry) -> list[str]:
    try:
        with local_tar(path) as tar:
            if sha256_file(tar.stored) != shard.sha256:
                return [f"{path}: its sha256 differs from the manifest"]
            found = {one.key: one.members for one in index_tar(tar.plain, shard.name).samples}
    except (CredentialsError, TransientError):
        raise
    except UserError as error:
        return [str(error)]
    return [
        f"{path}: '{one.key}' is not at the position in the manifest"
        for one in shard.samples
        if found.get(one.key) != one.members
    ]


def _index_shard(url: str, file: str, excluded: list[str]) -> ShardEntry:
    path = storage.join(url, file)
    with local_tar(path) as tar:
        entries = []
        for sample in index_tar(tar.plain, file).samples:
            if "txt" not in sample.members:
                excluded.append(f"{file}: {sample.key}: no caption (txt)")
            elif not any(
                name in IMAGE_EXTENSIONS or name.endswith(".npy") for name in sample.members
            ):
                excluded.append(f"{file}: {sample.key}: no image (png, jpg, webp) or array (npy)")
            else:
                json = sample.members.get("json")
                record = read_member(tar.plain, *json) if json else None
                entries.append(sample.model_copy(update={"attributes": json_attributes(record)}))
        return ShardEntry(
            name=file,
            bytes=tar.stored.stat().st_size,
            sha256=sha256_file(tar.stored),
            expanded_bytes=tar.plain.stat().st_size if file.endswith(".gz") else None,
            samples=tuple(entries),
        )
