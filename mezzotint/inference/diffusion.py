"""One diffusion model: images from classes, captions or nothing, inversion and likelihood."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.inference import editing
from mezzotint.inference.config import DenoiserSystem, DiffusionSystem, LatentSystem
from mezzotint.inference.controls import NO_CONTROLS, Controls, read_controls
from mezzotint.inference.generator import (
    Block,
    GenerationRequest,
    ImageGenerator,
    Progress,
    Prompt,
    SamplerStep,
    StepCallback,
)
from mezzotint.inference.images import to_bytes
from mezzotint.inference.latent_space import (
    ImageSpace,
    PixelDiffusionModel,
    PixelSpace,
    check_generates_alone,
    read_latent_space,
    recorded_first_stage,
)
from mezzotint.inference.model_directory import read_model
from mezzotint.inference.preprocessing import require_equal_preprocessing
from mezzotint.inference.runtime import Runtime
from mezzotint.inference.text_conditioning import TextConditioning, text_conditioning
from models import store
from models.autoencoders.latent_space import LatentSpace
from models.diffusion.classifier import NoisyClassifier, class_log_probability
from models.diffusion.condition import Condition
from models.diffusion.control.controlled import ControllableNetwork, ControlledNetwork
from models.diffusion.guidance import (
    LogProbability,
    with_condition,
    without_class,
    without_hints_of,
    without_text,
)
from models.diffusion.inversion import DDIMInversion, ddim_round_trip, encoding_times
from models.diffusion.likelihood import Hutchinson, Likelihood, log_likelihood
from models.diffusion.network import ClassConfig
from models.diffusion.process import Denoiser, DiffusionNetwork, denoiser
from models.diffusion.sampling import NFE, count_classifier_nfe, count_nfe
from models.diffusion.schedules.marginal import Schedule
from models.diffusion.solvers.analytic_dpm import AnalyticDPM, noise_moments
from models.frozen_text import CaptionTokens
from models.nn.random import normal


@dataclass(frozen=True)
class DiffusionGenerator(ImageGenerator):
    """A network, the text conditioning it was trained with, and perhaps a classifier."""

    config: DenoiserSystem
    network: PixelDiffusionModel
    runtime: Runtime
    text: TextConditioning | None = None
    """None: the network is not conditioned on captions."""
    classifier: NoisyClassifier | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    latents: LatentSpace | None = None
    """None: the network generates pixels."""
    controls: Controls = NO_CONTROLS
    reports_steps: ClassVar[bool] = True

    @classmethod
    def load(cls, config: DenoiserSystem, runtime: Runtime) -> "DiffusionGenerator":
        """Read the model directories of a configuration.

        Raises:
            UserError: a directory is missing or damaged, holds another kind of model than the
                setting needs, or does not name its text encoder.
        """
        network = store.load(config.model, device=runtime.device)
        stored = store.describe(config.model)
        if not isinstance(network, PixelDiffusionModel):
            raise UserError(
                f"system.model: {config.model} holds a {stored.config.kind}, not a diffusion model "
                "of images"
            )
        latents, digests = None, {"model": stored.digest}
        if isinstance(config, LatentSystem):
            latents = read_latent_space(
                config.model,
                config.first_stage,
                runtime.device,
                force=config.force_preprocessing,
            )
            digests["first_stage"] = recorded_first_stage(config.model).digest
        check_generates_alone(network, config.model, latents)
        text = text_conditioning(config.model, network.config.conditioning, runtime.device)
        controls = read_controls(config.controls, config.model, runtime.device)
        digests.update({f"control {n}": each for n, each in enumerate(controls.digests)})
        generator = cls(config, network, runtime, text, None, digests, latents, controls)
        if not isinstance(config, DiffusionSystem) or config.classifier is None:
            return generator
        classifier = _read_classifier(config.classifier, generator)
        require_equal_preprocessing(
            {"model": config.model, "classifier": config.classifier},
            force=config.force_preprocessing,
        )
        digests["classifier"] = store.describe(config.classifier).digest
        return replace(generator, classifier=classifier)

    @property
    def image_size(self) -> int:
        return self.space.image_size

    @property
    def space(self) -> ImageSpace:
        """Between images and what the network generates."""
        return self.latents or PixelSpace(self.network.config.image_size)

    @property
    def controlled(self) -> DiffusionNetwork:
        """The network with its controls."""
        if not self.controls.terms:
            return self.network
        assert isinstance(self.network, ControllableNetwork), "a control was trained for it"
        return ControlledNetwork(self.network, self.controls.terms)

    @property
    def schedule(self) -> Schedule:
        return self.network.process.schedule

    @property
    def conditioning(self) -> frozenset[str]:
        """What the network is conditioned on: of class, text and features."""
        return self.network.config.conditioning

    @property
    def classes(self) -> int | None:
        """Number of classes of the network or of its classifier; None without any."""
        config = self.network.config
        if isinstance(config, ClassConfig) and config.classes is not None:
            return config.classes
        return None if self.classifier is None else self.classifier.classes

    @property
    def null_class(self) -> int | None:
        """The label of the unconditional side."""
        config = self.network.config
        return config.classes if isinstance(config, ClassConfig) and config.null_class else None

    @property
    def text_encoders(self) -> Mapping[str, CaptionTokens]:
        return {} if self.text is None else {"model": self.text.tokens}

    def _check(self, request: GenerationRequest) -> None:
        request.refuse(self.config.kind, prefix=True)
        self.controls.check(request.hints, len(request.prompts))
        if request.edit is not None:
            request.edit.check(request.number, self.image_size)

    def _sample(self, block: Block) -> Mapping[str, Tensor]:
        nfe, noise, space = NFE(), block.noise, self.space
        if noise is None:
            shape = (len(block.prompts), *space.shape)
            noise = normal(shape, block.rng, self.runtime.device)

        def observe(step: SamplerStep) -> None:
            block.report(step.done, step.total)
            if block.callback is not None:
                x, denoised = space.shown(step.x), space.shown(step.denoised)
                block.callback(replace(step, x=x, denoised=denoised))

        cond, edit = replace(self.condition(block.prompts), hints=block.hints), block.edit
        if edit is not None and edit.mask is not None and "inpainting" in self.conditioning:
            cond = editing.with_kept(cond, self.space, edit.image, edit.mask)
        negative = self.negative_condition(cond, len(block.prompts))
        images = self.sample(
            cond, noise, block.rng, nfe, negative=negative, callback=observe, edit=edit
        )
        return {
            "images": to_bytes(images),
            "nfe": torch.tensor([nfe.network, nfe.classifier], device="cpu"),
        }

    @torch.no_grad()
    def sample(
        self,
        cond: Condition,
        noise: Tensor,
        rng: torch.Generator,
        nfe: NFE,
        *,
        negative: Condition | None = None,
        callback: StepCallback | None = None,
        edit: editing.ImageEdit | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] from standard normal noise (B, C, h, w).

        `cond.label` is also the class of classifier guidance; `negative` replaces the
        unconditional side of classifier-free guidance; `edit` has one row per image. `rng` gives
        the noise that solvers add; network evaluations are added to `nfe`.

        Raises:
            UserError: guidance without an unconditional side, or settings that do not fit.
        """
        sampling = self.config.sampling
        wanted = self._class_log_probability(cond, nfe)
        plain = count_nfe(denoiser(self.controlled), nfe)
        free = plain if sampling.guidance == 1 else self._unconditional(plain, negative)
        run = sampling.sampler_run(plain, free, self.schedule, wanted)
        x = run.start(noise)
        if edit is not None:
            run, x = editing.edited_run(
                run, edit, self.space, noise, trained="inpainting" in self.conditioning
            )
        time, total = float(run.times[0]), len(run.times) - 1
        for step in run.steps(x, cond, rng):
            if callback is not None:
                callback(SamplerStep(step.done - 1, step.total, time, x, step.prediction.x0))
            x, time = step.x, step.time
        if callback is not None:
            callback(SamplerStep(total, total, time, x, x))
        images = self.space.decode(x)
        return images if edit is None else editing.paste_kept(images, edit)

    def _unconditional(
        self, plain: Denoiser[Condition], negative: Condition | None
    ) -> Denoiser[Condition]:
        plain = without_hints_of(plain, self.controls.conditional_only)
        if negative is not None:
            return with_condition(plain, negative)
        if self.null_class is not None:
            plain = without_class(plain, self.null_class)
        elif not self.conditioning & {"text", "features"}:
            raise UserError(
                "guidance other than 1 needs a model with an unconditional side: one of captions, "
                "or of classes with model.null_class"
            )
        return without_text(plain)

    def _class_log_probability(self, cond: Condition, nfe: NFE) -> LogProbability | None:
        """ln p of the labels, if a classifier guides."""
        if not self.config.sampling.classifier_scale:
            return None
        if self.classifier is None or cond.label is None:
            raise UserError("classifier_scale needs a noisy classifier and a class")
        wanted = class_log_probability(self.classifier, cond.label, self.schedule)
        return count_classifier_nfe(wanted, nfe)

    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        """The prompts as a batch of conditions, on the device.

        Raises:
            UserError: a caption or class that the network does not take, or a class is missing.
        """
        cond = Condition(label=self._labels([prompt.label for prompt in prompts]))
        if "inpainting" in self.conditioning:
            cond = editing.with_nothing_kept(cond, self.space, len(prompts), self.runtime.device)
        captions = [prompt.text for prompt in prompts]
        if self.text is not None:
            return self.text(cond, [caption or "" for caption in captions])
        if any(caption is not None for caption in captions):
            raise UserError(f"{self.config.model}: is not conditioned on captions; leave them out")
        return cond

    def _labels(self, labels: Sequence[int | None]) -> Tensor | None:
        count, null = self.classes, self.null_class
        known = [null if label is None else label for label in labels]
        given = [label for label in known if label is not None]
        if "class" in self.conditioning and len(given) < len(labels):
            raise UserError(
                f"{self.config.model}: is conditioned on {count} classes and has no null class: "
                "name a class"
            )
        if not given:
            return None
        if count is None:
            raise UserError(f"{self.config.model}: is not conditioned on classes; leave it out")
        wrong = [label for label in labels if label is not None and not 0 <= label < count]
        if wrong:
            raise UserError(
                f"{self.config.model}: there is no class {wrong[0]}, classes are 0 to {count - 1}"
            )
        return torch.tensor(given, device=self.runtime.device)

    def negative_condition(self, cond: Condition, count: int) -> Condition | None:
        """Of `count` rows of the negative caption; None where there is none."""
        if (caption := self.config.negative) is None:
            return None
        if self.text is None:
            raise UserError(
                f"{self.config.model}: is not conditioned on captions, so not on a negative one"
            )
        if self.config.sampling.guidance == 1:
            raise UserError(
                "negative: a negative caption acts through guidance; set a guidance above 1"
            )
        return self.text(replace(cond, text=None, features=None), [caption] * count)

    def with_analytic_moments(
        self, images: Tensor, prompts: Sequence[Prompt], rng: torch.Generator
    ) -> "DiffusionGenerator":
        """The generator with Analytic-DPM's moments, estimated on images (B, 3, H, W)."""
        sampling, schedule = self.config.sampling, self.schedule
        times = sampling.time_grid.build(schedule, sampling.steps)
        with self.runtime.inference():
            cond, x0 = self.condition(prompts), self.space.encode(images.to(self.runtime.device))
            found = noise_moments(denoiser(self.network), schedule, x0, times, cond, rng)
        solver = AnalyticDPM(moments=tuple(found))
        chosen = sampling.model_copy(update={"solver": solver})
        return replace(self, config=self.config.model_copy(update={"sampling": chosen}))

    def invert(
        self, images: Tensor, prompts: Sequence[Prompt], progress: Progress | None = None
    ) -> DDIMInversion:
        """Images (B, 3, H, W) in [-1, 1] to noise by DDIM and back, without guidance.

        Of the sampling only times, steps and thresholding are used. The images are taken as noisy
        ones at the last of the times: where the network's error is larger than the noise there, the
        latent is not normal.
        """
        sampling, schedule = self.config.sampling, self.schedule
        times = encoding_times(schedule, sampling.time_grid.build(schedule, sampling.steps))
        called = sampling.thresholding.wrap(denoiser(self.network), schedule)
        with self.runtime.inference():
            x0 = self.space.encode(images.to(self.runtime.device))
            result = ddim_round_trip(called, schedule, x0, times, self.condition(prompts), progress)
            reconstruction = self.space.shown(result.reconstruction)
        return DDIMInversion(result.noise.cpu(), reconstruction.cpu())

    def log_likelihood(
        self,
        images: Tensor,
        prompts: Sequence[Prompt],
        rng: torch.Generator,
        *,
        times: Tensor,
        probes: int = 1,
        progress: Progress | None = None,
    ) -> Likelihood:
        """ln p of images (B, 3, H, W), by Hutchinson's estimate along decreasing times.

        Raises:
            UserError: a model of latents.
        """
        if self.latents is not None:
            raise UserError(
                f"{self.config.model}: gives a density of latents, not of images; likelihood needs "
                "a diffusion model of pixels"
            )
        increasing = encoding_times(self.schedule, times).flip(0)
        x, plain = images.to(self.runtime.device), denoiser(self.network)
        divergence = Hutchinson(x, rng, probes=probes)
        with self.runtime.inference():
            cond = self.condition(prompts)
            return log_likelihood(
                plain, self.schedule, x, increasing, cond, divergence, progress=progress
            )

    def protocol(self) -> Mapping[str, object]:
        sampling, latents = self.config.sampling, self.latents
        return {
            "kind": self.config.kind,
            "digests": dict(self.digests),
            **({} if latents is None else {"scaling": latents.scaling.model_dump(mode="json")}),
            "sampler": sampling.solver.kind,
            "sampling": sampling.model_dump(mode="json"),
            "times": sampling.time_grid.kind,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "negative": self.config.negative,
            **self.controls.protocol(),
            "captions": None if self.text is None else self.text.protocol(),
            "precision": self.runtime.precision_name,
        }


def _read_classifier(directory: str, generator: DiffusionGenerator) -> NoisyClassifier:
    """The noisy classifier of a directory, which must fit the model it guides.

    Raises:
        UserError: another kind of model, or one for images or classes of other numbers.
    """
    device = generator.runtime.device
    classifier = read_model(directory, NoisyClassifier, "classifier", device)
    side, classes = generator.image_size, generator.classes
    if classifier.config.image_size != side:
        raise UserError(
            f"system.classifier: {directory} classifies images of {classifier.config.image_size} "
            f"pixels, but system.model generates {side}"
        )
    if classes not in (None, classifier.classes):
        raise UserError(
            f"system.classifier: {directory} has {classifier.classes} classes, but "
            f"system.model has {classes}"
        )
    return classifier
