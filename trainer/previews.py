"""Preview images during training, made with the averaged weights."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from PIL import Image
from torch import Tensor, nn

from data_pipeline.batch import Batch
from data_pipeline.image_grid import GridCell, image_grid
from mezzotint.common.keyed_random import keyed_generator
from trainer.averages.ema import Ema
from trainer.engine import Engine
from trainer.recipe import Recipe
from trainer.rng import micro_batches
from trainer.task import Task

log = logging.getLogger(__name__)


def preview(
    recipe: Recipe,
    task: Task,
    engines: Mapping[str, Engine],
    emas: Mapping[str, Ema],
    batch: Batch,
    step: int,
) -> dict[str, Image.Image]:
    """The task's preview images for a few samples of `batch`; every process calls it.

    Images with numbers that are not finite are left out, with a warning.
    """
    device = device_of(engines)
    few = next(micro_batches(batch, min(recipe.log.preview_samples, len(batch.keys)), device))
    with evaluated(engines, emas) as parts:
        images = task.preview(parts, few, keyed_generator(recipe.seed, step, 0, device=device))
    finite = {name: each for name, each in images.items() if bool(each.isfinite().all())}
    for name in sorted(set(images) - set(finite)):
        log.warning("the preview %s of step %d is not finite: it is left out", name, step)
    return {name: grid(each) for name, each in finite.items()}


def measure(
    task: Task, engines: Mapping[str, Engine], emas: Mapping[str, Ema], step: int
) -> Mapping[str, float]:
    """The task's further metrics; every process calls it."""
    with evaluated(engines, emas) as parts:
        return task.measure(parts, step, device_of(engines))


def device_of(engines: Mapping[str, Engine]) -> torch.device:
    """Where the parts are."""
    return next(next(iter(engines.values())).module.parameters()).device


@contextmanager
def evaluated(
    engines: Mapping[str, Engine], emas: Mapping[str, Ema]
) -> Iterator[dict[str, nn.Module]]:
    """The parts in evaluation mode, with averaged weights and under autocast, without gradients."""
    parts: dict[str, nn.Module] = {name: engine.module for name, engine in engines.items()}
    training = {name: module.training for name, module in parts.items()}
    autocast = next(iter(engines.values())).autocast
    device = device_of(engines)
    try:
        for module in parts.values():
            module.eval()
        with (
            torch.no_grad(),
            ema_weights(engines, emas),
            torch.autocast(device.type, autocast) if autocast else nullcontext(),
        ):
            yield parts
    finally:
        for name, module in parts.items():
            module.train(training[name])


@contextmanager
def ema_weights(engines: Mapping[str, Engine], emas: Mapping[str, Ema]) -> Iterator[None]:
    """Swap the averaged weights in for the training weights.

    Under ZeRO-3 the live weights stay: DeepSpeed keeps some of them gathered, and would mix
    both.
    """
    swapped: list[tuple[Tensor, Tensor]] = []
    for name, ema in emas.items():
        if engines[name].zero == 3:
            continue
        for key, weight in engines[name].local_weights().items():
            swapped.append((weight, weight.clone()))
            weight.copy_(ema.values[key])
    try:
        yield
    finally:
        for weight, live in swapped:
            weight.copy_(live)


def grid(images: Tensor, *, columns: int = 8) -> Image.Image:
    """Images (N, 3, H, W) in [-1, 1] as one image, `columns` a row, at their own size."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    tiles = list(pixels.permute(0, 2, 3, 1).cpu())
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    return image_grid([[GridCell(rows)]], tile=max(images.shape[2:]))
