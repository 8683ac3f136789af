"""`mezzotint data pack`."""

import json
from collections import Counter
from collections.abc import Iterable

from data_pipeline.config import Selection
from data_pipeline.packing.pack import PackOptions, PackReport, pack
from launch.data.inspect import summary
from launch.progress import Reporter
from mezzotint.common.errors import UserError

_LISTED = 10


def pack_set(source: str, out: str, options: PackOptions, *, as_json: bool) -> str:
    """Pack image-text pairs into shards, with progress; returns the summary."""
    with Reporter(None, shows=not as_json) as reporter:
        report = pack(source, out, options, reporter.callback("pairs"))
    return to_json(report) if as_json else to_text(report)


def selections(splits: Iterable[str]) -> tuple[Selection, ...]:
    """Selections from `SPLIT/train`, `SPLIT/test`, or `SPLIT` for both.

    Raises:
        UserError: Another part than train or test.
    """
    chosen: list[Selection] = []
    for text in splits:
        match text.split("/"):
            case [split]:
                chosen += [
                    Selection(split=split, part="train"),
                    Selection(split=split, part="test"),
                ]
            case [split, ("train" | "test") as part]:
                chosen.append(Selection(split=split, part=part))
            case _:
                raise UserError(f"--split {text}: give SPLIT/train, SPLIT/test, or SPLIT for both")
    return tuple(chosen)


def to_json(report: PackReport) -> str:
    """The report as JSON, with every rejected pair and the number ignored by each rule."""
    rejected = [one.model_dump(mode="json") for one in report.rejected]
    ignored = {rule: one.model_dump(mode="json") for rule, one in report.ignored.items()}
    tree = {**summary(report.url, report.manifest), "rejected": rejected, "ignored": ignored}
    return json.dumps(tree, ensure_ascii=False, indent=1)


def to_text(report: PackReport) -> str:
    """The report as text, with the first rejected pairs and what was ignored by which rule."""
    manifest = report.manifest
    lines = [
        f"{report.url}: {manifest.sample_count:,} samples in {len(manifest.shards)} shards "
        f"({manifest.bytes / 1e6:.1f} MB), {manifest.shards[0].name} ..."
    ]
    for name, split in manifest.splits.items():
        lines.append(f"split {name}: {len(split.train):,} train, {len(split.test):,} test")
    if report.rejected:
        counts = Counter(one.fault for one in report.rejected)
        kinds = ", ".join(f"{count} {fault}" for fault, count in sorted(counts.items()))
        lines.append(f"rejected {len(report.rejected)} pairs: {kinds}")
        lines += [f"  {one.name}: {one.detail}" for one in report.rejected[:_LISTED]]
        lines.append(f"all are listed in {report.url}/rejected.jsonl")
    for rule, one in report.ignored.items():
        more = ", ..." if one.count > len(one.examples) else ""
        lines.append(f"ignored {one.count:,} ({rule}): {', '.join(one.examples)}{more}")
    return "\n".join(lines)
