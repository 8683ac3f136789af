"""`mezzotint data pack`: progress while it works, a summary at the end."""

import json
from pathlib import Path

from data_pipeline.build import shard_name
from data_pipeline.pack import PackOptions, PackReport, pack
from launch.progress import Reporter

SHOWN = 10


def pack_set(
    source: str,
    out: str,
    *,
    name: str | None,
    licence: str,
    columns: tuple[str, str],
    shard_size: int,
    workers: int,
    test_fraction: float,
    as_json: bool,
) -> str:
    """Pack pairs into shards; returns what to print."""
    defaults = PackOptions()
    options = PackOptions(
        name=name or defaults.name,
        licence=licence,
        image_column=columns[0],
        caption_column=columns[1],
        shard_size=shard_size,
        workers=workers,
        test_fraction=test_fraction,
    )
    with Reporter(None, shows=not as_json) as reporter:
        report = pack(source, out, options, reporter.counted("pairs"))
    return to_json(report) if as_json else to_text(report, options)


def to_json(report: PackReport) -> str:
    """One JSON object, with every rejected pair."""
    return json.dumps(
        {
            "url": report.url,
            "samples": report.samples,
            "shards": report.shards,
            "bytes": report.bytes,
            "rejected": [one.model_dump(mode="json") for one in report.rejected],
        },
        ensure_ascii=False,
        indent=1,
    )


def to_text(report: PackReport, options: PackOptions) -> str:
    """For people: what was written, and what was left out and why."""
    first = Path(shard_name(options.name, 0)).name
    lines = [
        f"{report.url}: {report.samples:,} samples in {report.shards} shards "
        f"({report.bytes / 1e6:.1f} MB), {first} ..."
    ]
    if report.rejected:
        kinds = ", ".join(f"{count} {fault}" for fault, count in sorted(report.faults.items()))
        lines.append(f"left out {len(report.rejected)} pairs: {kinds}")
        lines += [f"  {one.name}: {one.detail}" for one in report.rejected[:SHOWN]]
        lines.append(f"all of them are in {report.url}/rejected.jsonl")
    return "\n".join(lines)
