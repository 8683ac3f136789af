"""`mezzotint data derive`: a set's images as codes or latents."""

import json
from dataclasses import dataclass
from functools import partial

import torch

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.manifest import Manifest
from launch.processes import run_in_processes
from launch.progress import Reporter
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing
from mezzotint.inference.encode import encode_set, encoder_size
from mezzotint.inference.preprocessing import image_config
from mezzotint.inference.process_group import ProcessGroup


@dataclass(frozen=True)
class DeriveOptions:
    """What is encoded, and how."""

    url: str
    out: str
    model: str
    batch: int = 64
    latents: bool = False
    flip: bool = False
    """Keep the arrays of the mirrored images too."""
    device: str | None = None
    processes: int | None = None
    as_json: bool = False
    preprocessing: StatedPreprocessing = MODELS_OWN


def derive_set(options: DeriveOptions) -> str | None:
    """Encode the set; the report as text or JSON, None on ranks that do not write.

    Raises:
        UserError: no such set, a model that is no autoencoder, or another preprocessing than its
            own that is not forced.
    """
    size = encoder_size(options.model, latents=options.latents)
    image = image_config(options.model, size, options.preprocessing)
    force = options.preprocessing.force
    data = DataConfig(url=options.url, image=image, force_preprocessing=force)
    samples = len(open_dataset(data))
    images = samples * (2 if options.flip else 1)
    manifest = run_in_processes(
        partial(_derive_on, data, options),
        device=options.device,
        processes=options.processes,
        blocks=-(-samples // options.batch),
        images=images // 16,  # one pass each, a fraction of what it takes to generate one
    )
    return None if manifest is None else _report(options, manifest)


def _derive_on(
    data: DataConfig, options: DeriveOptions, device: torch.device, group: ProcessGroup
) -> Manifest | None:
    with Reporter(None, shows=group.is_main and not options.as_json) as reporter:
        manifest = encode_set(
            data,
            options.model,
            options.out,
            batch=options.batch,
            latents=options.latents,
            flip=options.flip,
            device=device,
            group=group,
            progress=reporter.callback("samples"),
        )
    return manifest if group.is_main else None


def _report(options: DeriveOptions, manifest: Manifest) -> str:
    samples = manifest.sample_count
    result = {"url": options.out, "samples": samples, "encoder": manifest.encoder}
    text = f"{options.out}: {samples:,} samples, encoder {manifest.encoder}"
    found = manifest.latents
    if found is not None:
        result |= {"mean": found.mean, "std": found.std, "scale": found.scale}
        text += (
            f"\nlatents of {found.samples:,} samples: mean {found.mean:.6g}, standard deviation "
            f"{found.std:.6g}, scale {found.scale:.6g}; task.target {{kind: latents}} reads them"
        )
    return json.dumps(result) if options.as_json else text
