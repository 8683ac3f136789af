"""`mezzotint data inspect`, `verify` and `index`: contents of a set, and whether it is intact."""

import json
from dataclasses import asdict
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.inspect import Inspection, contact_sheet, inspect
from data_pipeline.verify import index, verify
from mezzotint.common.errors import UserError


def inspect_set(url: str, sheet: Path | None, count: int, *, as_json: bool) -> str:
    """Describe a set; saves a contact sheet of `count` images if `sheet` is given."""
    found = inspect(url)
    text = json.dumps(asdict(found), ensure_ascii=False, indent=1) if as_json else describe(found)
    if sheet is not None:
        contact_sheet(open_dataset(DataConfig(url=url)), count).save(sheet)
        text += "" if as_json else f"\n{sheet}: {count} images"
    return text


def describe(found: Inspection) -> str:
    """An inspection as text."""
    captions = found.captions
    lines = [
        f"{found.name}  ({found.url})",
        f"  {found.samples:,} samples in {found.shards} shards, {found.bytes / 1e6:.1f} MB",
        f"  licence: {found.licence}",
        f"  manifest sha256: {found.fingerprint}",
    ]
    if found.encoder:
        lines.append(f"  encoder: {found.encoder}")
    lines += [f"  {name}: {text}" for name, text in found.fields.items()]
    lines.append("splits:")
    for name, split in found.splits.items():
        lines.append(f"  {name}: {split.train:,} train, {split.test:,} test: {split.description}")
    lines.append("attributes:")
    for name, counts in found.attributes.items():
        values = ", ".join(f"{value} {count:,}" for value, count in list(counts.items())[:6])
        lines.append(f"  {name}: {values}")
    lines += [
        f"captions ({captions.read:,} read): {captions.distinct:,} distinct, "
        f"{captions.words_mean:.1f} words on average, at most {captions.words_max}; "
        f"{captions.vocabulary:,} different words",
        "samples:",
    ]
    lines += [f"  {row.key}: {row.caption}" for row in found.rows]
    return "\n".join(lines)


def verify_set(url: str, *, as_json: bool) -> str:
    """Check a set against its manifest.

    Raises:
        UserError: It differs; the message lists every difference.
    """
    report = verify(url)
    if report.problems:
        problems = "\n  ".join(report.problems)
        raise UserError(f"{url}: differs from its manifest:\n  {problems}")
    shards, samples = len(report.manifest.shards), report.manifest.sample_count
    result = {"url": url, "shards": shards, "samples": samples, "intact": True}
    text = f"{url}: intact, {samples:,} samples in {shards} shards"
    return json.dumps(result) if as_json else text


def index_tars(url: str, name: str, licence: str, *, as_json: bool) -> str:
    """Write the manifest of a folder of webdataset tars."""
    manifest, excluded = index(url, name=name, licence=licence)
    samples = manifest.sample_count
    if as_json:
        return json.dumps({"url": url, "samples": samples, "excluded": list(excluded)}, indent=1)
    lines = [f"{url}/manifest.json: {samples:,} samples in {len(manifest.shards)} shards"]
    lines += [f"  excluded: {name}" for name in excluded]
    return "\n".join(lines)
