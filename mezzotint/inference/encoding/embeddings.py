"""CLIP embeddings of a set's images and captions, derived as another set (arXiv 2204.06125)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.derive import finished_set, write_derived
from data_pipeline.manifest import Manifest, Measured
from data_pipeline.sets.write import write_changed
from mezzotint.common import storage
from mezzotint.common.digests import sha256, sha256_file
from mezzotint.common.embedding_scaling import (
    IMAGE_EMBEDDING,
    TEXT_EMBEDDING,
    EmbeddingMoments,
    EmbeddingRecord,
    Normalization,
)
from mezzotint.common.errors import UserError
from mezzotint.common.mirrored import mirrored, with_mirrored
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing
from mezzotint.common.text_features import (
    CAPTION_ARRAYS,
    EMPTY_FEATURES,
    TEXT_FEATURES,
    TEXT_TOKENS,
    FeatureType,
    TextFeatureRecord,
)
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.config import ClipSource, OpenClip
from mezzotint.inference.encoding.captions import DTYPES, lines_of, npy
from mezzotint.inference.preprocessing import image_config, mirroring, prepared
from mezzotint.inference.process_group import ProcessGroup, Progress
from mezzotint.inference.runtime import Runtime
from models import frozen_text, store
from models.clip import ClipConfig
from models.finite import named_samples, require_finite
from models.pretrained.lookup import identify
from models.text_source import ClipText, OpenClipText, TextSource, identity

_FITS: dict[str, str] = {"shortest": "crop", "longest": "pad"}
"""How an image becomes a square, for open_clip's ways of resizing it."""
_DESCRIPTIONS = {
    IMAGE_EMBEDDING: "projection of the image by CLIP",
    mirrored(IMAGE_EMBEDDING): "projection of the mirrored image by CLIP",
    TEXT_EMBEDDING: "projection of each caption by CLIP",
    TEXT_FEATURES: "features of each caption by CLIP's text tower",
    TEXT_TOKENS: "how many features of each caption are no padding",
}


@dataclass(frozen=True)
class EmbeddingOptions:
    """What is kept of a set besides the embeddings of images and captions."""

    normalization: Normalization = "mean_std"
    """By which networks see the image embeddings; its statistics are those of the set."""
    text_features: bool = False
    """Features of every token of the captions too, and which of them are padding."""
    dtype: FeatureType = "fp32"
    """Of these features."""
    flip: bool = False
    """The embeddings of the mirrored images too; the statistics are of both."""

    @property
    def of_images(self) -> tuple[str, ...]:
        """The arrays of an image's embeddings."""
        return with_mirrored([IMAGE_EMBEDDING]) if self.flip else (IMAGE_EMBEDDING,)

    @property
    def arrays(self) -> tuple[str, ...]:
        more = (TEXT_FEATURES, TEXT_TOKENS) if self.text_features else ()
        return (*self.of_images, TEXT_EMBEDDING, *more)


def text_source_of(source: ClipSource) -> TextSource:
    """The text tower of a CLIP as a frozen text encoder."""
    if not isinstance(source, OpenClip):
        return ClipText(model=source)
    settings = source.model_dump(include=set(OpenClipText.model_fields) - {"digest"})
    return OpenClipText.model_validate(settings)


def prepared_for(
    data: DataConfig, source: ClipSource, stated: StatedPreprocessing | None = None
) -> DataConfig:
    """The data settings with images prepared for the image tower of a CLIP.

    `stated` is what a command states of them; None: what `data.image` states.

    Raises:
        UserError: no CLIP; another preprocessing is stated than its own and not forced, or a flip.
    """
    return prepared(data, partial(clip_images, source), stated)


def clip_images(source: ClipSource, stated: StatedPreprocessing = MODELS_OWN) -> ImageConfig:
    """How images are prepared for the image tower of a CLIP.

    Raises:
        UserError: no CLIP, or another preprocessing is stated than its own and not forced.
    """
    return _own_images(source, stated) if isinstance(source, str) else _images(source, stated)


def _own_images(directory: str, stated: StatedPreprocessing) -> ImageConfig:
    """Of a CLIP that was trained here."""
    config = store.describe(directory).config
    if not isinstance(config, ClipConfig):
        raise UserError(
            f"{directory}: holds a {config.kind}, not a CLIP; give the directory of a CLIP"
        )
    return image_config(directory, config.image_size, stated)


def _images(source: OpenClip, stated: StatedPreprocessing) -> ImageConfig:
    """Of an open_clip checkpoint: its own preprocessing follows, of squares of its size."""
    known = identify(source)
    assert known.preprocessing is not None, "of images"
    fit = _FITS.get(known.preprocessing.resize_mode)
    if fit is None and "fit" not in stated.values:
        raise UserError(
            f"{source.checkpoint}: squeezes images into a square (resize_mode: squash); state how "
            f"they are padded or cropped to one with {stated.prefix}fit"
        )
    filter_name = "bilinear" if known.preprocessing.interpolation == "bilinear" else "bicubic"
    size = known.shape["vision_cfg"].get("image_size", 224)
    own = {"size": size if isinstance(size, int) else max(size), "fit": fit, "filter": filter_name}
    return ImageConfig.model_validate({**own, **stated.values})


def encode_embeddings(
    data: DataConfig,
    source: ClipSource,
    out: str,
    options: EmbeddingOptions = EmbeddingOptions(),
    *,
    batch: int = 64,
    device: str | torch.device = "cpu",
    group: ProcessGroup | None = None,
    progress: Progress | None = None,
) -> Manifest | None:
    """Write the CLIP embeddings of a set, of `batch` samples at a time, as another set.

    Arrays of a sample: `image_embedding` (D,), `text_embedding` (lines, D) of each line of its
    KEY.txt, and with text features `text_features` (lines, L, C) and `text_tokens` (lines,), how
    many of the L are no padding; with `flip` the mirrored image's `image_embedding_mirrored` (D,).
    They are the projections as they are, computed in fp32; the normalisation that networks see them
    by is in the manifest, with its statistics. Images are prepared as those of the CLIP's training
    were.

    A finished set of the same source and CLIP is left as it is; only another normalisation is
    measured and written. The main process writes; None on the others.

    Raises:
        UserError: no CLIP, or embeddings that cannot be normalised.
        NonFiniteError: a sample's embeddings are not finite; nothing is left of the new set.
    """
    data = prepared_for(data.model_copy(update={"arrays": (), "hint": None}), source)
    data = mirroring(data) if options.flip else data
    dataset, made_by = open_dataset(data), _MadeBy.of(source, options)
    runtime = Runtime.of(device, "fp32", group)
    clip = ClipEmbedder.load(source, runtime.device)
    finished = _finished(dataset, out, clip.digest, made_by, options)
    if finished is not None:
        if not runtime.group.is_main:
            return finished
        return _normalized(out, finished, options.normalization)

    def compute(rows: range) -> Mapping[str, Tensor]:
        lines = [(row, line) for row in rows for line in lines_of(dataset, row)]
        names = {row: f"{data.url}: sample '{dataset.entry(row).key}'" for row in rows}
        images = dataset.batch(rows).images.to(runtime.device)
        with runtime.inference():
            with named_samples([names[row] for row in rows]):
                views = (images, images.flip(3))[: len(options.of_images)]
                made = zip(options.of_images, map(clip.model.project_image, views), strict=True)
                found = _required(dict(made))
            with named_samples([names[row] for row, _ in lines]):
                return found | _of_captions(clip, [line for _, line in lines], options)

    blocks = runtime.group.map_blocks(compute, len(dataset), batch, progress)
    if not runtime.group.is_main:
        for _ in blocks:
            pass
        return None
    with runtime.inference():
        empty = _of_captions(clip, [""], options)
    return _write(dataset, out, blocks, empty, clip.digest, made_by, options)


@dataclass(frozen=True)
class _MadeBy:
    """What made the arrays of a set."""

    model: str
    """Location of the CLIP."""
    weights: str | None
    """Digest of the weights of an open_clip checkpoint."""
    text: str | None
    """Identity of the text tower, where its features are kept."""

    @classmethod
    def of(cls, source: ClipSource, options: EmbeddingOptions) -> "_MadeBy":
        text = None
        if options.text_features:
            text = identity(frozen_text.describe(text_source_of(source)).source)
        if isinstance(source, OpenClip):
            return cls(source.checkpoint, sha256_file(identify(source).weights), text)
        return cls(source, None, text)


def _of_captions(
    clip: ClipEmbedder, captions: Sequence[str], options: EmbeddingOptions
) -> dict[str, Tensor]:
    """The arrays of captions, a row each, on the CPU.

    Raises:
        NonFiniteError: one is not finite, with the row.
    """
    if not options.text_features:
        tokens = clip.text(captions).to(clip.device)
        return _required({TEXT_EMBEDDING: clip.model.project_text(tokens)})
    found = clip.encode_captions(captions)
    arrays = {
        TEXT_EMBEDDING: found.embedding,
        TEXT_FEATURES: found.features.to(DTYPES[options.dtype]),
    }
    return _required({**arrays, TEXT_TOKENS: found.mask.sum(dim=1, dtype=torch.int32)})


def _required(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrays (B, ...) on the CPU, refused where a sample's are not finite."""
    for name, values in arrays.items():
        require_finite(f"array '{name}' is", values)
    return {name: values.cpu() for name, values in arrays.items()}


def _finished(
    dataset: Dataset, out: str, digest: str, made_by: _MadeBy, options: EmbeddingOptions
) -> Manifest | None:
    """The manifest of a finished set of this CLIP, with these arrays, of any normalisation."""
    found = finished_set(dataset, out, None, fields=options.arrays)
    if found is None or found.embeddings is None or found.embeddings.digest != digest:
        return None
    if options.text_features:
        record = found.text_features
        if record is None or (record.encoder, record.dtype) != (made_by.text, options.dtype):
            return None
    return found


def _normalized(out: str, manifest: Manifest, kind: Normalization) -> Manifest:
    """The manifest of a finished set by a normalisation, measured and written where it is new.

    Raises:
        UserError: the embeddings cannot be normalised so.
    """
    record = manifest.embeddings
    assert record is not None, "found with the set"
    if record.scaling.kind == kind:
        return manifest
    flips = f"{mirrored(IMAGE_EMBEDDING)}.npy" in manifest.fields
    names = EmbeddingOptions(flip=flips).of_images
    dataset = open_dataset(DataConfig(url=out, arrays=names))
    moments = EmbeddingMoments.none(record.scaling.dim)
    for index in range(len(dataset)):
        arrays = dataset.sample(index).arrays
        moments = moments.with_rows(np.stack([arrays[name] for name in names]))
    scaling = moments.scaling(kind, out)
    changes = {"embeddings": record.model_copy(update={"scaling": scaling})}
    return write_changed(out, manifest, changes)


def _write(
    dataset: Dataset,
    out: str,
    blocks: Iterator[Mapping[str, Tensor]],
    empty: Mapping[str, Tensor],
    digest: str,
    made_by: _MadeBy,
    options: EmbeddingOptions,
) -> Manifest:
    """Write the arrays of all samples; `empty` are those of an empty caption, one row each."""
    vector = empty[TEXT_EMBEDDING][0]
    moments = EmbeddingMoments.none(len(vector))
    features = npy(empty[TEXT_FEATURES][0]) if options.text_features else None

    def members() -> Iterator[Mapping[str, bytes]]:
        nonlocal moments
        row = 0
        for block in blocks:
            views = torch.stack([block[name] for name in options.of_images], dim=1)
            moments = moments.with_rows(views.flatten(0, 1).numpy())
            counts = [
                len(lines_of(dataset, row + each)) for each in range(len(block[IMAGE_EMBEDDING]))
            ]
            yield from _members(block, counts)
            row += len(counts)

    def measured() -> Measured:
        record = EmbeddingRecord(
            model=made_by.model,
            digest=digest,
            weights=made_by.weights,
            scaling=moments.scaling(options.normalization, dataset.config.url),
        )
        if features is not None:
            storage.write_bytes(storage.join(out, EMPTY_FEATURES), features)
        return Measured(embeddings=record, empty_text_embedding=tuple(vector.tolist()))

    record = None
    if features is not None and made_by.text is not None:
        record = TextFeatureRecord(
            encoder=made_by.text,
            length=empty[TEXT_FEATURES].shape[1],
            width=empty[TEXT_FEATURES].shape[2],
            dtype=options.dtype,
            empty_sha256=sha256(features),
            empty_tokens=int(empty[TEXT_TOKENS][0]),
        )
    return write_derived(
        dataset,
        out,
        members(),
        name=f"{dataset.manifest.name}-embeddings",
        fields={f"{name}.npy": _DESCRIPTIONS[name] for name in options.arrays},
        text_features=record,
        measured=measured,
    )


def _members(block: Mapping[str, Tensor], lines: Sequence[int]) -> Iterator[Mapping[str, bytes]]:
    """The members of every sample of a block; `lines` are the numbers of their captions."""
    texts = {
        name: torch.split(each, list(lines))
        for name, each in block.items()
        if name in CAPTION_ARRAYS
    }
    for row in range(len(lines)):
        arrays = {name: each[row] for name, each in texts.items()}
        arrays |= {name: each[row] for name, each in block.items() if name not in CAPTION_ARRAYS}
        yield {f"{name}.npy": npy(each) for name, each in arrays.items()}
