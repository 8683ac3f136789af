"""`mezzotint data pack`."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from data_pipeline.config import HINT_NAME, Selection
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack, pack_part
from data_pipeline.packing.report import Count, PackReport, PartReport
from launch.data.inspect import summary
from launch.progress import Reporter
from mezzotint.common.errors import UserError

_LISTED = 10


def pack_set(source: str, out: str, options: PackOptions, *, as_json: bool) -> str:
    """Pack image-text pairs into shards, with progress; returns the summary."""
    with Reporter(None, shows=not as_json) as reporter:
        progress = reporter.callback("pairs")
        if options.part is not None:
            return _part(pack_part(source, out, options, progress), as_json=as_json)
        report = pack(source, out, options, progress)
    return to_json(report) if as_json else to_text(report)


def pack_part_of(text: str | None) -> tuple[int, int] | None:
    """(i, n) of `I/N`.

    Raises:
        UserError: It is not a part of a whole.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--part {text}: give I/N with I from 1 to N, for instance 2/8")
    return part, parts


def _part(report: PartReport, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(asdict(report))
    return (
        f"{report.url}: {report.shards} shards are written, {report.missing} are missing; the "
        "command without --part finishes the set"
    )


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


def column_names(stated: Iterable[str]) -> tuple[str, ...]:
    """The names in options that may each have several, `width,height`."""
    return tuple(name for names in stated for name in names.split(",") if name)


def hint_columns(stated: Iterable[str]) -> dict[str, str]:
    """The columns of hints by the hint's name, from `COLUMN` or `NAME=COLUMN`.

    Raises:
        UserError: a name that no hint can have, or one that occurs twice.
    """
    found: dict[str, str] = {}
    for text in stated:
        name, separator, column = text.partition("=")
        column = column if separator else name
        if not re.fullmatch(HINT_NAME, name) or not column:
            raise UserError(
                f"--hint-column {text}: a hint's name has small letters, digits and _ only; give "
                f"one, for instance --hint-column edges={column or 'COLUMN'}"
            )
        if name in found:
            raise UserError(f"--hint-column {text}: there are two columns of hint '{name}'")
        found[name] = column
    return found


def to_json(report: PackReport) -> str:
    """The report as JSON, with every rejected pair and the number ignored by each rule."""
    tree = {
        **summary(report.url, report.manifest),
        "rejected": [one.model_dump(mode="json") for one in report.rejected],
        "ignored": _tree(report.ignored),
        "noticed": _tree(report.noticed),
        "overlap": dict(report.overlap),
        "again": report.again,
        "changes": _tree(report.changes),
    }
    return json.dumps(tree, ensure_ascii=False, indent=1)


def to_text(report: PackReport) -> str:
    """The report as text, with the first rejected pairs and what was ignored by which rule."""
    manifest = report.manifest
    lines = [
        f"{report.url}: {manifest.sample_count:,} samples in {len(manifest.shards)} shards "
        f"({manifest.bytes / 1e6:.1f} MB), {manifest.shards[0].name} ..."
    ]
    if report.again:
        lines.append("the set was there; " + ("changes:" if report.changes else "no change"))
        lines += _lines("", report.changes)
        if any(", kept" in what for what in report.changes):
            lines.append("  what was kept goes with --update")
    for name, split in manifest.splits.items():
        line = f"split {name}: {sum(split.train):,} train, {sum(split.test):,} test"
        if shared := report.overlap.get(name):
            line += f"; {shared:,} test samples share an image or a caption with train"
        lines.append(line)
    lines += _lines("noticed ", report.noticed)
    if report.rejected:
        kinds = Counter(one.fault for one in report.rejected)
        listed = ", ".join(f"{count} {fault}" for fault, count in sorted(kinds.items()))
        lines.append(f"rejected {len(report.rejected)} pairs: {listed}")
        lines += [f"  {one.name}: {one.detail}" for one in report.rejected[:_LISTED]]
        lines.append(f"all are listed in {report.url}/rejected.jsonl")
    lines += _lines("ignored ", report.ignored)
    return "\n".join(lines)


def _tree(found: Mapping[str, Count]) -> dict[str, object]:
    return {what: one.model_dump(mode="json") for what, one in found.items()}


def _lines(start: str, found: Mapping[str, Count]) -> list[str]:
    lines = []
    for what, one in found.items():
        more = ", ..." if one.count > len(one.examples) else ""
        lines.append(f"{start or '  '}{one.count:,} ({what}): {', '.join(one.examples)}{more}")
    return lines
