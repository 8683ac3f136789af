"""`mezzotint likelihood`: bits per dimension of a set's images under a diffusion model."""

import json
from dataclasses import asdict, dataclass
from functools import partial

import torch

from evaluation.metrics.likelihood import Bits, Integration, bits_per_dimension
from launch.processes import run_in_processes
from launch.progress import Reporter
from launch.sampling.inputs import images_of_set
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.generator import Prompt
from mezzotint.inference.images import to_bytes
from mezzotint.inference.model_lookup import TrainedModel, denoiser_system, find_model
from mezzotint.inference.preprocessing import image_config
from mezzotint.inference.process_group import ProcessGroup
from mezzotint.inference.runtime import Runtime


@dataclass(frozen=True)
class LikelihoodOptions:
    """Which images, and how the ODE is integrated."""

    url: str
    split: str | None
    limit: int
    integration: Integration
    device: str | None
    processes: int | None
    show_progress: bool
    preprocessing: StatedPreprocessing = MODELS_OWN


@dataclass(frozen=True)
class LikelihoodResult:
    """The mean over images, and of which ones."""

    bits: Bits
    source: str

    def to_text(self) -> str:
        mean = self.bits.mean
        return (
            f"{mean.value:.3f} bits per dimension ({mean.low:.3f} to {mean.high:.3f}, 95% over "
            f"{mean.n} images of {self.source})"
        )

    def to_json(self) -> str:
        tree = {
            "bits_per_dimension": asdict(self.bits.mean),
            "images": self.source,
            "protocol": dict(self.bits.protocol),
        }
        return json.dumps(tree, indent=2, ensure_ascii=False)


def evaluate_likelihood(where: str, options: LikelihoodOptions) -> LikelihoodResult | None:
    """Bits per dimension of images, each under its own caption or class; None on other ranks.

    Raises:
        UserError: no such model, classes without a recipe, or a set that cannot be read.
    """
    return run_in_processes(
        partial(evaluate_on, find_model(where), options),
        device=options.device,
        processes=options.processes,
        blocks=-(-options.limit // options.integration.batch),
        images=options.limit * options.integration.steps // 8,
    )


def evaluate_on(
    model: TrainedModel, options: LikelihoodOptions, device: torch.device, group: ProcessGroup
) -> LikelihoodResult | None:
    """One process's share; the main one returns the result."""
    runtime = Runtime.of(device, "fp32", group)
    generator = DiffusionGenerator.load(denoiser_system(model.directory), runtime)
    by_class = "class" in generator.conditioning
    if by_class and model.labels is None and generator.null_class is None:
        raise UserError(
            f"{model.directory}: is conditioned on classes, and how images get theirs is in its "
            "training's recipe; give the training run's directory"
        )
    found = images_of_set(
        options.url,
        image_config(model.directory, generator.image_size, options.preprocessing),
        limit=options.limit,
        seed=options.integration.seed,
        split=options.split,
        label=model.labels if by_class else None,
    )
    count = len(found.images)
    captions = found.captions if generator.text is not None else (None,) * count
    labels = found.labels or (None,) * count
    prompts = [Prompt(*each) for each in zip(captions, labels, strict=True)]
    with Reporter(None, shows=group.is_main and options.show_progress) as reporter:
        bits = bits_per_dimension(
            generator,
            to_bytes(found.images),
            prompts,
            options.integration,
            reporter.callback("likelihood"),
            keys=found.names,
        )
    return LikelihoodResult(bits, found.source) if group.is_main else None
