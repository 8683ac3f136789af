"""The generator of any system configuration."""

from dataclasses import replace
from typing import assert_never

import torch

from mezzotint.inference.cascade import CascadeGenerator
from mezzotint.inference.config import (
    CascadeSystem,
    DalleSystem,
    DiffusionSystem,
    HierarchySystem,
    LatentSystem,
    SystemConfig,
    UnclipSystem,
)
from mezzotint.inference.dalle import DalleGenerator
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.process_group import ProcessGroup
from mezzotint.inference.runtime import Precision, Runtime, code_precision
from mezzotint.inference.unclip.generator import UnclipGenerator
from mezzotint.inference.vqvae2 import VQVAE2Generator

AnyGenerator = (
    DalleGenerator | VQVAE2Generator | CascadeGenerator | UnclipGenerator | DiffusionGenerator
)


def load_generator(
    config: SystemConfig,
    *,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
    group: ProcessGroup | None = None,
) -> AnyGenerator:
    """Read a system's model directories onto a device.

    A prior over codes computes in fp32 under `auto`, see `code_precision`.

    Raises:
        UserError: a directory is missing, damaged, holds another kind of model, or does not fit
            its neighbours.
    """
    if isinstance(config, DalleSystem | HierarchySystem):
        precision = code_precision(precision)
    runtime = Runtime.of(device, precision, group)
    match config:
        case DalleSystem():
            return DalleGenerator.load(config, runtime)
        case HierarchySystem():
            return VQVAE2Generator.load(config, runtime)
        case CascadeSystem():
            return CascadeGenerator.load(config, runtime)
        case UnclipSystem():
            return UnclipGenerator.load(config, runtime)
        case DiffusionSystem() | LatentSystem():
            return DiffusionGenerator.load(config, runtime)
        case _:
            assert_never(config)


def with_config(generator: AnyGenerator, config: SystemConfig) -> AnyGenerator:
    """The same models under other sampling settings."""
    match generator, config:
        case DalleGenerator(), DalleSystem():
            return replace(generator, config=config)
        case VQVAE2Generator(), HierarchySystem():
            return replace(generator, config=config)
        case CascadeGenerator(), CascadeSystem():
            return replace(generator, config=config)
        case UnclipGenerator(), UnclipSystem():
            return replace(generator, config=config)
        case DiffusionGenerator(), DiffusionSystem() | LatentSystem():
            if config.kind == generator.config.kind:
                controls = generator.controls.with_settings(config.controls)
                return replace(generator, config=config, controls=controls)
    raise TypeError(f"a {config.kind} is not the system of a {type(generator).__name__}")
