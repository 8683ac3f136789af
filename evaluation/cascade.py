"""The report of a cascade: what its super-resolution stages read, against what they learned on.

A stage is trained on real images that are made small and degraded, and used on images that the
stage before generates. Where both differ in colour or spectrum, its images are off too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.config import ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from evaluation import samples
from evaluation.config import CascadeReportConfig, image_protocol
from evaluation.metrics.intervals import Score, bootstrap_mean
from evaluation.metrics.spectrum import BANDS, band_log_powers, radial_log_powers
from evaluation.result import Evaluated
from evaluation.stages import Stages
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.cascade import CascadeGenerator, UpsamplingStage
from mezzotint.inference.config import StageSampling
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.images import from_bytes, to_bytes
from mezzotint.inference.load import load_generator
from mezzotint.inference.preprocessing import image_model
from mezzotint.inference.runtime import Runtime
from mezzotint.inference.unclip.generator import UnclipGenerator
from models.nn.random import BatchGenerator

GRID, CHART = "grid_inputs.png", "spectra.png"
COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class RealImages:
    """Real images (N, 3, H, W) in [-1, 1] at the cascade's size, and their captions."""

    keys: Sequence[str]
    captions: Sequence[str]
    images: Tensor
    fingerprint: str


@dataclass(frozen=True)
class StageInputs:
    """Inputs (N, 3, h, w) of one super-resolution stage, of the same captions."""

    setting: str
    generated: Tensor
    real: Tensor


def evaluate_cascade(config: CascadeReportConfig, runtime: Runtime, stages: Stages) -> Evaluated:
    """Compare the inputs of every super-resolution stage.

    Raises:
        UserError: something that is read is missing or does not fit.
    """
    cascade = load_generator(
        config.system, device=runtime.device, precision=config.precision, group=runtime.group
    )
    assert isinstance(cascade, CascadeGenerator | UnclipGenerator), "what these systems are"
    if not cascade.stages:
        raise UserError("system.upsamplers: has none, so there are no inputs to compare; add one")
    with stages("reference") as report:
        image = config.reference.image_config(image_model(config.system), cascade.image_size)
        real = real_images(config, image)
        report(len(real.keys), len(real.keys))
    request = GenerationRequest(
        prompts=tuple(
            Prompt(caption, key=key) for key, caption in zip(real.keys, real.captions, strict=True)
        ),
        seed=config.seed,
        batch_size=config.batch,
    )
    inputs = []
    for index, (stage, sampling) in enumerate(
        zip(cascade.stages, config.system.stage_sampling, strict=True)
    ):
        with stages(stage.setting) as report:
            images = cascade.up_to(index).generate(request, progress=report).images[:, 0]
            inputs.append(stage_inputs(config, stage, sampling, from_bytes(images), real))
    return Evaluated(
        protocol={
            "system": cascade.protocol(),
            "seed": config.seed,
            "batch": config.batch,
            "real_inputs": "means over squares, degraded as in training, gaussian noise at the "
            "level of sampling",
            "bands": {
                name: f"{low:g} to {high:g} of Nyquist" for name, (low, high) in BANDS.items()
            },
            "reference": {
                "split": config.reference.split,
                "part": config.part,
                "fingerprint": real.fingerprint,
                "images": len(real.keys),
                **image_protocol(image),
            },
            "intervals": "95% over captions, bootstrap of paired differences",
        },
        metrics=statistics(inputs, config.seed),
        write_images=partial(write_images, config, inputs, real.captions),
    )


def real_images(config: CascadeReportConfig, image: ImageConfig) -> RealImages:
    """Images of the part, chosen by the seed.

    Raises:
        UserError: there are none.
    """
    dataset = open_dataset(config.reference.data_config(config.part, image))
    if len(dataset) < 2:
        raise UserError(f"part: {config.part} of {config.reference.split} has fewer than 2 images")
    keys = dataset.keys()
    chosen, images = samples.choose(keys, config.limit, config.seed), []
    for index in chosen:
        found = dataset.sample(index).image
        if found is None:
            raise UserError(f"{dataset.config.url}: holds no images; set reference.url")
        images.append(torch.tensor(found, device="cpu"))
    return RealImages(
        keys=[keys[index] for index in chosen],
        captions=[dataset.caption(index) for index in chosen],
        images=from_bytes(torch.stack(images)),
        fingerprint=dataset.manifest.fingerprint,
    )


def stage_inputs(
    config: CascadeReportConfig,
    stage: UpsamplingStage,
    sampling: StageSampling,
    generated: Tensor,
    real: RealImages,
) -> StageInputs:
    """Generated images (N, 3, h, w) and real ones as the stage's augmentation leaves them.

    Both of a caption get the same noise.
    """
    augmentation = stage.network.augmentation
    small = F.avg_pool2d(real.images, real.images.shape[-1] // stage.low_size)
    level = torch.full((len(small),), sampling.level, device=small.device)
    levels = keyed_generator(config.seed, "levels", stage.setting)
    trained = augmentation.levels_beside(sampling.level, len(small), levels)

    def degraded(images: Tensor, level: Tensor) -> Tensor:
        keyed = [keyed_generator(config.seed, "input", stage.setting, key) for key in real.keys]
        return augmentation(images, level, BatchGenerator.of(keyed))

    return StageInputs(stage.setting, degraded(generated, level), degraded(small, trained))


def statistics(inputs: Sequence[StageInputs], seed: int) -> Mapping[str, Mapping[str, Score]]:
    """Means over captions of generated minus real, by metric and stage.

    Brightness, colours and contrast (the standard deviation inside an image) in levels of 255, the
    power of bands of the spectrum in decibels.
    """
    found: dict[str, dict[str, Score]] = {}

    def add(name: str, stage: str, differences: Tensor) -> None:
        rng = keyed_generator(seed, "cascade", name, stage)
        found.setdefault(name, {})[stage] = bootstrap_mean(differences, rng)

    for each in inputs:
        generated, real = each.generated.double() * 127.5, each.real.double() * 127.5
        shift = generated.mean(dim=(2, 3)) - real.mean(dim=(2, 3))
        add("brightness_shift", each.setting, shift.mean(dim=1))
        for index, colour in enumerate(COLOURS):
            add(f"{colour}_shift", each.setting, shift[:, index])
        contrast = generated.std(dim=(1, 2, 3)) - real.std(dim=(1, 2, 3))
        add("contrast_shift", each.setting, contrast)
        powers = band_log_powers(each.generated) - band_log_powers(each.real)
        for index, band in enumerate(BANDS):
            add(f"{band}_frequencies_db", each.setting, powers[:, index])
    return found


def write_images(
    config: CascadeReportConfig, inputs: Sequence[StageInputs], captions: Sequence[str], out: Path
) -> None:
    """`grid_inputs.png`: generated and real input of each stage; `spectra.png`: their spectra."""
    columns = [to_bytes(one) for each in inputs for one in (each.generated, each.real)]
    labels = [f"{kind} {each.setting}" for each in inputs for kind in ("to", "real")]
    cells = [
        GridCell([[each[index] for each in columns]], captions[index])
        for index in range(min(config.grid_images, len(captions)))
    ]
    if cells:
        title = f"{config.name}: inputs of super-resolution, generated and real"
        grid = image_grid(in_columns(cells, 2), title=title, image_labels=labels)
        grid.save(out / GRID)
    draw_spectra(inputs, out / CHART)


def draw_spectra(inputs: Sequence[StageInputs], path: Path) -> None:
    """Mean spectra of generated and real inputs, a panel for each stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(inputs), 3.2), layout="constrained")
    for index, each in enumerate(inputs):
        axes = figure.add_subplot(1, len(inputs), index + 1)
        for label, images in (("generated", each.generated), ("real, degraded", each.real)):
            powers = radial_log_powers(images).mean(dim=0)
            axes.plot(torch.linspace(0, 1, len(powers), device="cpu"), powers, label=label)
        axes.set_title(f"inputs of {each.setting}", fontsize=10)
        axes.set_xlabel("frequency / Nyquist")
        axes.set_ylabel("power, dB")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
