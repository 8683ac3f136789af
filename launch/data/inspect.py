"""`mezzotint data inspect`: the contents of a set."""

import json
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.inspect import Inspection, contact_sheet, inspect
from data_pipeline.manifest import Manifest
from data_pipeline.text.token_lengths import TokenLengths, read_tokenizer, token_lengths
from mezzotint.common.embedding_scaling import described
from mezzotint.common.errors import UserError

CAPTIONS = 20_000
"""Samples whose captions are tokenized."""


def inspect_set(
    url: str,
    sheet: Path | None,
    count: int,
    *,
    images: int,
    as_json: bool,
    tokenizer: str | None = None,
    length: int | None = None,
    join: tuple[str, ...] = (),
) -> str:
    """Describe a set by `images` of its images; saves a sheet of `count` if `sheet` is given.

    Beside each image the sheet shows the sample's other images, those of the sets of `join` too.

    With a tokenizer also the lengths of its captions, and how many of them `length` cuts.
    """
    tokens = None
    if tokenizer is not None:
        tokens = _tokens(url, tokenizer, length)
    elif length is not None:
        raise UserError("--length: is in tokens of a tokenizer; give --tokenizer too")
    found = inspect(url, images=images)
    text = to_json(found, tokens) if as_json else to_text(found)
    if tokens is not None and not as_json:
        text += f"\n{tokens.to_text()}"
    if join and sheet is None:
        raise UserError("--join: shows hints on the contact sheet; give --sheet too")
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(open_dataset(DataConfig(url=url, join=join)), count).save(sheet)
        text += "" if as_json else f"\n{sheet}: {count} images"
    return text


def _tokens(url: str, tokenizer: str, length: int | None) -> TokenLengths:
    """Lengths of the captions of the first samples."""
    pieces, dataset = read_tokenizer(tokenizer), open_dataset(DataConfig(url=url))
    captions = chain.from_iterable(
        dataset.captions_of(index) for index in range(min(CAPTIONS, len(dataset)))
    )
    return token_lengths(captions, pieces, tokenizer, length)


def summary(url: str, manifest: Manifest) -> dict[str, Any]:
    """A set in numbers, for JSON."""
    return {
        "url": url,
        "name": manifest.name,
        "samples": manifest.sample_count,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "splits": {
            name: {
                "description": split.description,
                "train": sum(split.train),
                "test": sum(split.test),
            }
            for name, split in manifest.splits.items()
        },
    }


def to_json(found: Inspection, tokens: TokenLengths | None = None) -> str:
    """An inspection as JSON."""
    header = found.manifest.model_dump(include={"licence", "encoder", "provenance", "fields"})
    tree = (
        summary(found.url, found.manifest)
        | header
        | {
            "fingerprint": found.manifest.fingerprint,
            "latents": _latents_tree(found.manifest),
            "embeddings": _embeddings_tree(found.manifest),
            "attributes": found.attributes,
            "captions": asdict(found.captions),
            "tokens": None if tokens is None else asdict(tokens),
            "images": _images_tree(found),
            "overlap": {name: asdict(one) for name, one in found.overlap.items()},
            "examples": [asdict(example) for example in found.examples],
            "not_in_manifest": list(found.unlisted),
        }
    )
    return json.dumps(tree, ensure_ascii=False, indent=1)


def to_text(found: Inspection) -> str:
    """An inspection as text."""
    manifest, captions = found.manifest, found.captions
    lines = [
        f"{manifest.name}  ({found.url})",
        f"  {manifest.sample_count:,} samples in {len(manifest.shards)} shards, "
        f"{manifest.bytes / 1e6:.1f} MB",
        f"  licence: {manifest.licence}",
        f"  manifest sha256: {manifest.fingerprint}",
    ]
    if manifest.encoder:
        lines.append(f"  encoder: {manifest.encoder}")
    if manifest.latents:
        scaling = manifest.latents
        lines.append(
            f"  latents of {scaling.samples:,} samples: mean {scaling.mean:.6g}, standard "
            f"deviation {scaling.std:.6g}, scale {scaling.scale:.6g}"
        )
    if manifest.embeddings:
        record = manifest.embeddings
        lines.append(
            f"  embeddings of {record.scaling.dim} by the CLIP {record.digest[:12]} "
            f"({record.model}), normalised by {described(record.scaling)}"
        )
    lines += [f"  {name}: {text}" for name, text in manifest.fields.items()]
    lines.append("splits:")
    for name, split in manifest.splits.items():
        counts = f"{sum(split.train):,} train, {sum(split.test):,} test"
        lines.append(f"  {name}: {counts}: {split.description}")
        shared = found.overlap[name]
        if shared.images or shared.captions:
            lines.append(
                f"    of its test samples read, {shared.images:,} have an image of a training "
                f"sample, {shared.captions:,} a caption"
            )
    lines.append("attributes:")
    for name, common in found.attributes.items():
        values = ", ".join(f"{value} {count:,}" for value, count in list(common.items())[:6])
        lines.append(f"  {name}: {values}")
    several = f", several of {captions.several:,} samples" if captions.several else ""
    lines += [
        f"captions ({captions.read:,} read{several}): {captions.distinct:,} distinct, "
        f"{captions.words_mean:.1f} words on average, at most {captions.words_max}; "
        f"{captions.vocabulary:,} different words",
        *_image_lines(found),
        "samples:",
    ]
    lines += [f"  {one.key}: {one.caption}" for one in found.examples]
    if found.unlisted:
        lines.append(f"not in the manifest: {', '.join(found.unlisted)}")
    return "\n".join(lines)


def _latents_tree(manifest: Manifest) -> dict[str, float] | None:
    scaling = manifest.latents
    return None if scaling is None else {**scaling.model_dump(), "scale": scaling.scale}


def _embeddings_tree(manifest: Manifest) -> dict[str, Any] | None:
    """The record of a set's embeddings, without the statistics of every dimension."""
    if manifest.embeddings is None:
        return None
    return manifest.embeddings.model_dump(exclude={"scaling": {"mean", "std"}})


def _images_tree(found: Inspection) -> dict[str, Any]:
    images = found.images
    if images is None:
        return {"decoded": 0, "equal": found.equal_images}
    return {
        "decoded": images.read,
        "smallest": images.smallest,
        "largest": images.largest,
        "aspect_max": images.aspect_max,
        "equal": found.equal_images,
        "noticed": {what: one.model_dump(mode="json") for what, one in images.noticed.items()},
    }


def _image_lines(found: Inspection) -> list[str]:
    images = found.images
    if images is None:
        return []
    small, large = (
        f"{width:,} x {height:,}" for width, height in (images.smallest, images.largest)
    )
    lines = [
        f"images ({images.read:,} decoded): {small} to {large} pixels, at most "
        f"{_ratio(images.aspect_max)} times as long as wide"
    ]
    if found.equal_images:
        lines.append(
            f"  {found.equal_images:,} of {found.captions.samples:,}: equal to another one"
        )
    for what, one in images.noticed.items():
        more = ", ..." if one.count > len(one.examples) else ""
        share = f"{one.count:,} ({one.count / images.read:.1%})"
        lines.append(f"  {share}: {what}: {', '.join(one.examples)}{more}")
    return lines


def _ratio(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")
