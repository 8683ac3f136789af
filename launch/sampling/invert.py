"""`mezzotint invert`: images to the noise from which DDIM generates them, and back."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data_pipeline.image_grid import GridAxis, GridCell, image_grid
from evaluation.metrics.psnr import psnr
from launch.processes import run_in_processes
from launch.progress import Reporter
from launch.sampling.inputs import InputImages, images_of_files
from launch.sampling.lost_captions import log_lost
from launch.sampling.noise_file import NoiseFile
from launch.sampling.overrides import Value, with_overrides
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.generator import Prompt
from mezzotint.inference.images import to_bytes
from mezzotint.inference.model_lookup import TrainedModel, denoiser_system, find_model
from mezzotint.inference.preprocessing import image_config
from mezzotint.inference.process_group import ProcessGroup
from mezzotint.inference.runtime import Runtime
from models.diffusion.inversion import noise_statistics
from models.finite import require_finite

BATCH = 16
"""Images inverted together."""


@dataclass(frozen=True)
class InvertOptions:
    """How images are inverted."""

    captions: tuple[str, ...]
    """One each, one for all, or none."""
    classes: tuple[str, ...]
    steps: tuple[int, ...]
    times: str
    start: float
    """The timestep at which images are taken as noisy ones."""
    out: Path
    noise: Path
    device: str | None = None
    processes: int | None = None
    show_progress: bool = True
    preprocessing: StatedPreprocessing = MODELS_OWN


@dataclass(frozen=True)
class InversionResult:
    """Inversion and reconstruction in so many steps."""

    steps: int
    noise: Tensor
    """(n, 3, H, W)."""
    reconstruction: Tensor
    """(n, H, W, 3) uint8."""
    psnr: tuple[float, ...]
    statistics: Mapping[str, tuple[float, ...]]
    """Of the noise, by name; one number per image."""

    @property
    def mean_psnr(self) -> float:
        """In dB, over the images."""
        return sum(self.psnr) / len(self.psnr)


@dataclass(frozen=True)
class InversionReport:
    """The results for every number of steps."""

    options: InvertOptions
    names: tuple[str, ...]
    results: tuple[InversionResult, ...]

    def to_text(self) -> str:
        lines = ["steps   PSNR     noise: mean        std  kurtosis  neighbours"]
        for result in self.results:
            means = {key: sum(each) / len(each) for key, each in result.statistics.items()}
            shown = f"{means['mean']:>12.3f} {means['std']:>10.3f} {means['kurtosis']:>9.2f}"
            lines.append(
                f"{result.steps:>5} {result.mean_psnr:>6.2f} dB {shown} "
                f"{means['neighbours']:>11.3f}"
            )
        lines.append(f"{self.options.out}: images, noise and reconstructions")
        lines.append(
            f"{self.options.noise}: the noise of {self.results[-1].steps} steps, for "
            "`mezzotint sample --from-noise`"
        )
        return "\n".join(lines)

    def to_json(self) -> str:
        """All numbers, one list entry per image."""
        runs: list[dict[str, Any]] = [
            {
                "steps": result.steps,
                "nfe": 2 * result.steps,
                "psnr": [round(each, 4) if math.isfinite(each) else None for each in result.psnr],
                "noise": {
                    key: [round(each, 5) for each in values]
                    for key, values in result.statistics.items()
                },
            }
            for result in self.results
        ]
        tree = {
            "out": str(self.options.out),
            "noise": str(self.options.noise),
            "images": list(self.names),
            "times": self.options.times,
            "start": self.options.start,
            "runs": runs,
        }
        return json.dumps(tree, indent=2, ensure_ascii=False)


def invert(where: str, images: Sequence[Path], options: InvertOptions) -> InversionReport | None:
    """Invert and reconstruct with every number of steps; write grid and noise.

    None on ranks that do not write.

    Raises:
        UserError: no such model, image, class or time grid, or a condition the model does not take.
    """
    if options.noise.suffix != ".safetensors":
        raise UserError(f"--noise {options.noise}: ends with .safetensors")
    model = find_model(where)
    prompts = prompts_for(len(images), options, model)
    options = replace(options, steps=tuple(sorted(set(options.steps))))
    return run_in_processes(
        partial(invert_on, model, tuple(images), prompts, options),
        device=options.device,
        processes=options.processes,
        blocks=-(-len(images) // BATCH),
        images=len(images),
    )


def parse_steps(text: str) -> tuple[int, ...]:
    """Positive whole numbers, as in 10,25,50.

    Raises:
        UserError: something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--steps {text}: looks like 10,25,50")
    return tuple(int(part) for part in parts)


def prompts_for(count: int, options: InvertOptions, model: TrainedModel) -> tuple[Prompt, ...]:
    """The prompt of each image.

    Raises:
        UserError: neither one for all nor one each.
    """

    def each(option: str, values: Sequence[Any]) -> list[Any]:
        if len(values) not in (0, 1, count):
            raise UserError(
                f"--{option}: {len(values)} given for {count} images; give one for all, or one "
                "each in their order"
            )
        return list(values) * (count if len(values) == 1 else 1) or [None] * count

    captions = each("caption", options.captions)
    labels = each("class", [model.label(name) for name in options.classes])
    return tuple(Prompt(*pair) for pair in zip(captions, labels, strict=True))


def invert_on(
    model: TrainedModel,
    paths: tuple[Path, ...],
    prompts: tuple[Prompt, ...],
    options: InvertOptions,
    device: torch.device,
    group: ProcessGroup,
) -> InversionReport | None:
    """One process's share; the main one writes the files."""
    runtime = Runtime.of(device, "fp32", group)
    generator = DiffusionGenerator.load(denoiser_system(model.directory), runtime)
    image = image_config(model.directory, generator.image_size, options.preprocessing)
    given = images_of_files(paths, image)
    images = given.images
    with Reporter(None, shows=group.is_main and options.show_progress) as reporter:
        results = tuple(
            invert_in_steps(generator, given, prompts, steps, options, reporter)
            for steps in options.steps
        )
    if not group.is_main:
        return None
    log_lost(generator, [prompt.text for prompt in prompts])
    names = tuple(path.name for path in paths)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    inversion_grid(model.name, names, to_bytes(images), results).save(options.out)
    NoiseFile(
        noise=results[-1].noise,
        digest=generator.digests["model"],
        steps=results[-1].steps,
        times=options.times,
        captions=tuple(prompt.text or "" for prompt in prompts),
        classes=tuple(prompt.label for prompt in prompts if prompt.label is not None),
    ).save(options.noise)
    return InversionReport(options, names, results)


def invert_in_steps(
    generator: DiffusionGenerator,
    given: InputImages,
    prompts: Sequence[Prompt],
    steps: int,
    options: InvertOptions,
    reporter: Reporter,
) -> InversionResult:
    """All images with one number of steps, in blocks.

    Raises:
        NonFiniteError: noise or reconstruction of an image are not finite.
    """
    images = given.images
    settings: dict[str, Value] = {"steps": steps, "times": options.times, "thresholding": "none"}
    config = with_overrides(generator.config, settings | {"last": options.start})
    chosen = replace(generator, config=config)
    progress = reporter.callback(f"invert in {steps} steps")

    def compute(block: range) -> Mapping[str, Tensor]:
        rows = slice(block.start, block.stop)
        result = chosen.invert(images[rows], prompts[rows], progress)
        require_finite("its noise is", result.noise, given.names[rows])
        require_finite("its reconstruction is", result.reconstruction, given.names[rows])
        return {"noise": result.noise, "reconstruction": to_bytes(result.reconstruction)}

    found = generator.runtime.group.concatenate_blocks(compute, len(images), BATCH)
    noise, back = found["noise"], found["reconstruction"]
    return InversionResult(
        steps=steps,
        noise=noise,
        reconstruction=back,
        psnr=tuple(psnr(back, to_bytes(images)).tolist()),
        statistics={
            key: tuple(values.tolist()) for key, values in asdict(noise_statistics(noise)).items()
        },
    )


def inversion_grid(
    name: str, names: Sequence[str], images: Tensor, results: Sequence[InversionResult]
) -> Image.Image:
    """Two rows per image: the noise, and its reconstruction beside the image itself."""
    blank = torch.full_like(images[0], 255)
    cells, labels = [], []
    for index, label in enumerate(names):
        shown = [blank, *(to_bytes(result.noise[index] / 2) for result in results)]
        cells.append([GridCell([[each]]) for each in shown])
        labels.append("noise, at half its size")
        shown = [images[index], *(result.reconstruction[index] for result in results)]
        cells.append([GridCell([[each]]) for each in shown])
        labels.append(label)
    columns = ["original", *(f"{result.steps} steps" for result in results)]
    listed = ", ".join(f"{each.mean_psnr:.1f} dB in {each.steps} steps" for each in results)
    return image_grid(
        cells,
        title=f"{name}: inversion and reconstruction",
        rows=GridAxis(labels),
        columns=GridAxis(columns),
        notes=[f"PSNR of the reconstructions, mean over the images: {listed}."],
        max_width=800,
    )
