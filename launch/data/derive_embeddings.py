"""`mezzotint data derive --clip`: CLIP embeddings of a set's images and captions."""

import json
from dataclasses import dataclass, field
from functools import partial

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.manifest import Manifest
from launch.processes import run_in_processes
from launch.progress import Reporter
from mezzotint.common.embedding_scaling import described
from mezzotint.common.errors import UserError, first_error
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing
from mezzotint.inference.config import ClipSource
from mezzotint.inference.encoding.embeddings import (
    EmbeddingOptions,
    encode_embeddings,
    prepared_for,
)
from mezzotint.inference.process_group import ProcessGroup


@dataclass(frozen=True)
class ClipOptions:
    """What is encoded, and how."""

    url: str
    out: str
    clip: str
    kept: EmbeddingOptions = field(default_factory=EmbeddingOptions)
    batch: int = 64
    device: str | None = None
    processes: int | None = None
    as_json: bool = False
    preprocessing: StatedPreprocessing = MODELS_OWN


def clip_source(stated: str) -> ClipSource:
    """The CLIP of `--clip`: a model directory, or an open_clip checkpoint's settings as YAML.

    Raises:
        UserError: settings that are none of an open_clip checkpoint.
    """
    if not stated.lstrip().startswith("{"):
        return stated
    try:
        found: ClipSource = TypeAdapter(ClipSource).validate_python(yaml.safe_load(stated))
    except (ValidationError, yaml.YAMLError) as error:
        reason = first_error(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"--clip: {reason}; write it as '{{kind: open_clip, checkpoint: FILE, tag: openai}}'"
        ) from error
    return found


def derive_embedding_set(options: ClipOptions) -> str | None:
    """Encode the set; the report as text or JSON, None on ranks that do not write.

    Raises:
        UserError: no such set or CLIP, or another preprocessing than its own that is not forced.
    """
    source, stated = clip_source(options.clip), options.preprocessing
    data = prepared_for(DataConfig(url=options.url), source, stated)
    samples = len(open_dataset(data))
    manifest = run_in_processes(
        partial(_derive_on, data, source, options),
        device=options.device,
        processes=options.processes,
        blocks=-(-samples // options.batch),
        images=samples * (2 if options.kept.flip else 1) // 16,
    )
    return None if manifest is None else _report(options, manifest)


def _derive_on(
    data: DataConfig,
    source: ClipSource,
    options: ClipOptions,
    device: torch.device,
    group: ProcessGroup,
) -> Manifest | None:
    with Reporter(None, shows=group.is_main and not options.as_json) as reporter:
        manifest = encode_embeddings(
            data,
            source,
            options.out,
            options.kept,
            batch=options.batch,
            device=device,
            group=group,
            progress=reporter.callback("samples"),
        )
    return manifest if group.is_main else None


def _report(options: ClipOptions, manifest: Manifest) -> str:
    record, text = manifest.embeddings, manifest.text_features
    assert record is not None, "written with the set"
    tree = {
        "url": options.out,
        "samples": manifest.sample_count,
        "clip": record.digest,
        "dim": record.scaling.dim,
        "normalization": record.scaling.kind,
        "text_features": None if text is None else [text.length, text.width, text.dtype],
    }
    if options.as_json:
        return json.dumps(tree)
    features = "" if text is None else f", text features of {text.length} x {text.width}"
    return (
        f"{options.out}: {manifest.sample_count:,} samples, embeddings of {record.scaling.dim} by "
        f"the CLIP {record.digest[:12]}{features}\nnormalisation {described(record.scaling)}; "
        "task.target {kind: image_embeddings} and task.condition {kind: clip_image} read them"
    )
