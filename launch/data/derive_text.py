"""`mezzotint data derive --text-encoder`: features of a set's captions."""

import json
from dataclasses import dataclass
from functools import partial

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.manifest import Manifest
from launch.processes import run_in_processes
from launch.progress import Reporter
from mezzotint.common import storage
from mezzotint.common.errors import UserError, first_error
from mezzotint.common.text_features import FeatureType
from mezzotint.inference.encoding.captions import encode_captions
from mezzotint.inference.process_group import ProcessGroup
from models import t5
from models.text_source import ClipText, T5Text, TextSource


@dataclass(frozen=True)
class TextOptions:
    """What is encoded, and how."""

    url: str
    out: str
    encoder: str
    dtype: FeatureType = "fp32"
    batch: int = 64
    device: str | None = None
    processes: int | None = None
    as_json: bool = False


def text_source(stated: str) -> TextSource:
    """The encoder of `--text-encoder`: a model directory of a CLIP, T5's, or settings as YAML.

    Raises:
        UserError: settings that are none of a text encoder.
    """
    if stated.lstrip().startswith("{"):
        try:
            found: TextSource = TypeAdapter(TextSource).validate_python(yaml.safe_load(stated))
        except (ValidationError, yaml.YAMLError) as error:
            reason = first_error(error) if isinstance(error, ValidationError) else str(error)
            raise UserError(
                f"--text-encoder: {reason}; write it as task.condition.encoder of a recipe"
            ) from error
        return found
    if storage.exists(storage.join(stated, t5.PIECES)):
        return T5Text(directory=stated)
    return ClipText(model=stated)


def derive_text_set(options: TextOptions) -> str | None:
    """Encode the captions; the report as text or JSON, None on ranks that do not write.

    Raises:
        UserError: no such set or encoder.
    """
    source = text_source(options.encoder)
    samples = len(open_dataset(DataConfig(url=options.url)))
    manifest = run_in_processes(
        partial(_derive_on, source, options),
        device=options.device,
        processes=options.processes,
        blocks=-(-samples // options.batch),
        images=samples // 16,
    )
    if manifest is None:
        return None
    record = manifest.text_features
    assert record is not None, "written with the set"
    tree = {"url": options.out, "samples": manifest.sample_count, **record.model_dump()}
    if options.as_json:
        return json.dumps(tree)
    return (
        f"{options.out}: {manifest.sample_count:,} samples, text features of {record.length} x "
        f"{record.width} ({record.dtype}) for each caption; task.condition {{kind: features, "
        "cached: true} reads them, this set in data.join"
    )


def _derive_on(
    source: TextSource, options: TextOptions, device: torch.device, group: ProcessGroup
) -> Manifest | None:
    with Reporter(None, shows=group.is_main and not options.as_json) as reporter:
        return encode_captions(
            DataConfig(url=options.url),
            source,
            options.out,
            dtype=options.dtype,
            batch=options.batch,
            device=device,
            group=group,
            progress=reporter.callback("samples"),
        )
