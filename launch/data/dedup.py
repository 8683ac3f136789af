"""`mezzotint data dedup`."""

import json
from pathlib import Path

from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.duplicates.dedup import DEDUPLICATED, DedupOptions, DedupReport, dedup
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from data_pipeline.inspect import sample_images
from launch.progress import Reporter

_SHOWN = 48
"""Groups on a sheet."""
_IMAGES = 4
"""Of a group on a sheet."""
_LISTED = 5


def dedup_set(url: str, options: DedupOptions, sheet: Path | None, *, as_json: bool) -> str:
    """Write the split, and a sheet of the largest groups; returns the summary."""
    with Reporter(None, shows=not as_json) as reporter:
        report = dedup(url, options, reporter.callback("images"))
    if sheet is not None and report.groups:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        _sheet(url, report).save(sheet)
    return _to_json(url, report) if as_json else _to_text(url, report, sheet)


def _sheet(url: str, report: DedupReport) -> Image.Image:
    dataset = open_dataset(DataConfig(url=url))
    cells = []
    for numbers, keys in zip(report.groups[:_SHOWN], report.keys, strict=False):
        images = [sample_images(dataset, number)[0] for number in numbers[:_IMAGES]]
        cells.append(GridCell([images], f"{len(keys)}: {', '.join(keys[:_IMAGES])}"))
    return image_grid(in_columns(cells, 4), tile=96)


def _to_json(url: str, report: DedupReport) -> str:
    return json.dumps(
        {
            "url": url,
            "split": DEDUPLICATED,
            "images": report.images,
            "kept": report.images - report.left_out,
            "left_out": report.left_out,
            "equal_files": report.equal_files,
            "groups": [list(keys) for keys in report.keys],
            "test_samples_with_a_training_image": dict(report.across),
        },
        ensure_ascii=False,
        indent=1,
    )


def _to_text(url: str, report: DedupReport, sheet: Path | None) -> str:
    kept = report.images - report.left_out
    lines = [
        f"{url}: split {DEDUPLICATED}: {kept:,} of {report.images:,} images are kept; "
        f"{report.left_out:,} are in {len(report.groups):,} groups with another one "
        f"({report.equal_files:,} equal files)"
    ]
    for name, count in report.across.items():
        if count:
            lines.append(
                f"split {name}: {count:,} test samples are in a group with training samples"
            )
    lines += [f"  {len(keys)}: {', '.join(keys[:8])}" for keys in report.keys[:_LISTED]]
    if sheet is not None:
        lines.append(f"{sheet}: the largest groups" if report.groups else f"{sheet}: not written")
    if report.groups:
        lines.append(
            f"train on what is kept: data.select: [{{split: SPLIT, part: train, within: "
            f"{{{DEDUPLICATED}: train}}}}]"
        )
    return "\n".join(lines)
