"""`mezzotint data verify` and `index`: whether a set is intact, and the manifest of tars."""

import json
from collections.abc import Mapping, Sequence

from data_pipeline.index import index
from data_pipeline.indexing.options import IndexOptions, IndexReport
from data_pipeline.shards import index_again
from data_pipeline.verify import VerifyReport, verify
from launch.progress import Reporter
from mezzotint.common import storage
from mezzotint.common.errors import UserError

_LISTED = 10


def verify_set(url: str, *, images: bool, workers: int, as_json: bool) -> str:
    """Check a set against its manifest.

    Raises:
        UserError: It differs; the message lists every difference.
    """
    with Reporter(None, shows=not as_json) as reporter:
        report = verify(url, reporter.callback("samples"), images=images, workers=workers)
    if report.problems:
        problems = "\n  ".join(report.problems)
        raise UserError(
            f"{url}: differs from its manifest; copy what is damaged again, or "
            f"{index_again(url)}, which leaves damaged samples out:\n  {problems}"
        )
    return _verified(url, report, images=images, as_json=as_json)


def _verified(url: str, report: VerifyReport, *, images: bool, as_json: bool) -> str:
    shards, samples = len(report.manifest.shards), report.manifest.sample_count
    if as_json:
        return json.dumps(
            {
                "url": url,
                "shards": shards,
                "samples": samples,
                "intact": True,
                "images_decoded": images,
                "not_in_manifest": list(report.unlisted),
            }
        )
    decoded = "captions, arrays and images decode" if images else "captions and arrays decode"
    lines = [f"{url}: intact, {samples:,} samples in {shards} shards; {decoded}"]
    if not images:
        lines[0] += " (images: --images)"
    if report.unlisted:
        lines.append(f"not in the manifest: {', '.join(report.unlisted)}")
    return "\n".join(lines)


def index_tars(url: str, options: IndexOptions, *, as_json: bool) -> str:
    """Write the manifest of a folder of webdataset tars."""
    with Reporter(None, shows=not as_json) as reporter:
        report = index(url, options, reporter.callback("bytes"))
    if as_json:
        return json.dumps(
            {
                "url": url,
                "samples": report.manifest.sample_count,
                "excluded": list(report.excluded),
                "ignored": {rule: list(names) for rule, names in report.ignored.items()},
                "changes": list(report.changes),
                "notes": list(report.notes),
                "images_decoded": options.images,
            },
            ensure_ascii=False,
            indent=1,
        )
    return "\n".join(_index_lines(url, report, images=options.images))


def _index_lines(url: str, report: IndexReport, *, images: bool) -> list[str]:
    manifest = report.manifest
    place = storage.join(url, "manifest.json")
    lines = [f"{place}: {manifest.sample_count:,} samples in {len(manifest.shards)} shards"]
    if not images:
        lines[0] += " (images were not decoded)"
    if report.excluded:
        more = "; --json lists all" if len(report.excluded) > _LISTED else ""
        lines.append(f"excluded samples: {len(report.excluded):,}{more}")
        lines += [f"  {one}" for one in report.excluded[:_LISTED]]
    lines += ignored_lines(report.ignored)
    lines += [f"changed: {one}" for one in report.changes]
    lines += [f"noticed: {one}" for one in report.notes]
    return lines


def ignored_lines(ignored: Mapping[str, Sequence[str]]) -> list[str]:
    """What is no sample, counted by rule, with examples."""
    lines = []
    for rule, names in ignored.items():
        more = " ..." if len(names) > 2 else ""
        lines.append(f"ignored, {rule}: {len(names):,} ({', '.join(names[:2])}{more})")
    return lines
