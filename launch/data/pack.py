"""`mezzotint data pack`: progress while it works, a summary at the end."""

import json
from collections.abc import Iterable

from data_pipeline.config import Selection
from data_pipeline.packing.pack import PackOptions, PackReport, pack
from data_pipeline.packing.shard_writer import shard_name
from launch.progress import Reporter
from mezzotint.common.errors import UserError

SHOWN = 10


def pack_set(source: str, out: str, options: PackOptions, *, as_json: bool) -> str:
    """Pack pairs into shards; returns what to print."""
    with Reporter(None, shows=not as_json) as reporter:
        report = pack(source, out, options, reporter.callback("pairs"))
    return to_json(report) if as_json else to_text(report)


def selections(splits: Iterable[str]) -> tuple[Selection, ...]:
    """`SPLIT/PART`, or `SPLIT` for both of its parts, as a recipe's selections.

    Raises:
        UserError: a part that is neither train nor test.
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
    """One JSON object, with every rejected pair."""
    return json.dumps(
        {
            "url": report.url,
            "samples": report.samples,
            "shards": report.shards,
            "bytes": report.bytes,
            "splits": {
                name: {"train": train, "test": test}
                for name, (train, test) in report.splits.items()
            },
            "rejected": [one.model_dump(mode="json") for one in report.rejected],
        },
        ensure_ascii=False,
        indent=1,
    )


def to_text(report: PackReport) -> str:
    """For people: what was written, and what was left out and why."""
    first = shard_name(report.name, 0)
    lines = [
        f"{report.url}: {report.samples:,} samples in {report.shards} shards "
        f"({report.bytes / 1e6:.1f} MB), {first} ..."
    ]
    for name, (train, test) in report.splits.items():
        lines.append(f"split {name}: {train:,} train, {test:,} test")
    if report.rejected:
        kinds = ", ".join(f"{count} {fault}" for fault, count in sorted(report.faults.items()))
        lines.append(f"left out {len(report.rejected)} pairs: {kinds}")
        lines += [f"  {one.name}: {one.detail}" for one in report.rejected[:SHOWN]]
        lines.append(f"all of them are in {report.url}/rejected.jsonl")
    return "\n".join(lines)
