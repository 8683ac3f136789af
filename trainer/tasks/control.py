"""Training of a control branch for a frozen denoiser (ControlNet, arXiv 2302.05543)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.controlled import ControlledNetwork, ControlTerm
from models.diffusion.control.network import Control
from models.diffusion.process import DiffusionNetwork
from trainer.rng import micro_batches
from trainer.task import EngineLike, Engines, Loss, Step, Task
from trainer.tasks.base_model import LazyBase
from trainer.tasks.conditioning.captions import FeaturesCondition, TextCondition
from trainer.tasks.conditions import (
    ConditionConfig,
    LowResolutionCondition,
    SeveralConditions,
    as_conditions,
)
from trainer.tasks.convergence import Convergence, FidelityConfig, Score, closer_to
from trainer.tasks.denoising import Denoising, DenoisingConfig


class ControlTaskConfig(DenoisingConfig, frozen=True, extra="forbid"):
    """Denoising with a hint. The captions of half of the samples are dropped, so that the control
    learns to read the hint alone (arXiv 2302.05543, 3.3).
    """

    kind: Literal["control"]  # type: ignore[assignment]
    base: str = Field(min_length=1)
    """The model directory or training run of the network that is controlled, which stays as it
    is."""
    caption_drop: float = Field(default=0.5, ge=0, lt=1)
    """Takes the place of a condition's `drop`, of captions and of features of captions."""
    fidelity: FidelityConfig | None = FidelityConfig()
    """How often samples are compared with their hints; None: never."""

    @model_validator(mode="after")
    def _starts_as_its_base(self) -> "ControlTaskConfig":
        if self.start is not None:
            raise ValueError("start: a control starts as its base; leave it out")
        return self

    @model_validator(mode="after")
    def _no_crops(self) -> "ControlTaskConfig":
        for each in as_conditions(self.condition):
            if isinstance(each, LowResolutionCondition) and each.crop is not None:
                raise ValueError("condition.crop: a hint belongs to the whole image; leave it out")
        return self

    def build(self, model: nn.Module) -> "ControlTask":  # type: ignore[override]
        """The task, its control ready to start as the base.

        Raises:
            UserError: the model is no control, or cannot be conditioned or trained so.
        """
        if not isinstance(model, Control):
            raise UserError("task.kind: control trains a model of kind control, which model is not")
        if "low_resolution" in model.config.conditioning:
            raise UserError(
                "model.base: upsamples images; train a control for the base of its cascade"
            )
        if "inpainting" in model.config.conditioning:
            raise UserError("model.base: inpaints; train a control for the model it started from")
        dropped = with_caption_drop(self.condition, self.caption_drop)
        settings = self.model_copy(update={"condition": dropped})
        denoising = DenoisingConfig.build(settings, model)
        base = LazyBase(self.base)
        base.start(model)
        return ControlTask(settings, model, denoising, base)


def with_caption_drop(condition: ConditionConfig, drop: float) -> ConditionConfig:
    """The condition, captions dropped for this share of the samples."""
    match condition:
        case TextCondition() | FeaturesCondition():
            return condition.model_copy(update={"drop": drop})
        case SeveralConditions(conditions=several):
            changed = tuple(with_caption_drop(each, drop) for each in several)
            return condition.model_copy(update={"conditions": changed})
        case _:
            return condition


class ControlTask(Task):
    """Trains a control; its base is frozen, and the base's encoder keeps no gradients."""

    def __init__(
        self, config: ControlTaskConfig, model: Control, denoising: Denoising, base: LazyBase
    ) -> None:
        self._config, self._model, self._denoising, self.base = config, model, denoising, base
        self._score: Score | None = None
        self._fixed: Callable[[int], Batch] | None = None
        self._convergence = Convergence()

    def watch(self, fixed: Callable[[int], Batch], score: Score | None) -> None:
        """What is measured: the first samples of the data, by a score of images and hints.

        Without a score it is how much closer samples come to the real images.
        """
        self._fixed, self._score = fixed, score

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        base = self.base(next(self._model.parameters()))
        called = _Controlled(engines["model"], base, batch.hints)
        yield from self._denoising.losses({"model": called}, batch, step)

    def after_update(self, step: Step) -> None:
        self._denoising.after_update(step)

    def state(self) -> Mapping[str, Any]:
        return {"denoising": self._denoising.state(), "convergence": self._convergence.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._denoising.restore(state.get("denoising", {}))
        self._convergence.restore(state.get("convergence", {}))

    @torch.no_grad()
    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Hints, real images, and samples with and without the control from the same noise.

        None where the base generates no images and names no first stage.
        """
        control, hint = parts["model"], batch.hints
        clean, condition = self._denoising.evaluation(batch, rng)
        real = self.base.to_images(clean)
        if real.shape[1] != 3:
            return {}
        images = {"hint": _shown(hint), "real": real}
        noise = torch.randn(clean.shape, generator=rng, device=clean.device)
        seed = rng.get_state()
        samples = {"controlled": replace(condition, hints=(hint,)), "base": condition}
        for name, each in samples.items():
            rng.set_state(seed)
            images[name] = self.base.to_images(self._sample(control, noise, each, rng))
        return images

    def measures(self, step: int) -> bool:
        every = None if self._config.fidelity is None else self._config.fidelity.every
        return every is not None and self._fixed is not None and step % every == 0

    @torch.no_grad()
    def measure(
        self, parts: Mapping[str, nn.Module], step: int, device: torch.device
    ) -> Mapping[str, float]:
        """Fidelity of samples to fixed hints, with fixed noise; see `Convergence`."""
        settings, fixed = self._config.fidelity, self._fixed
        assert settings is not None, "it is measured"
        assert fixed is not None, "it is measured"
        batch = next(micro_batches(fixed(settings.samples), settings.samples, device))
        rng = torch.Generator(device).manual_seed(0)
        clean, condition = self._denoising.evaluation(batch, rng)
        noise = torch.randn(clean.shape, generator=rng, device=device)
        seed, real = rng.get_state(), self.base.to_images(clean)
        score = self._score if real.shape[1] == 3 else None

        def fidelity(condition: Condition) -> float:
            rng.set_state(seed)
            found = self.base.to_images(self._sample(parts["model"], noise, condition, rng))
            return closer_to(real, found) if score is None else score(batch.hints, found)

        if self._convergence.base is None:
            self._convergence.base = fidelity(condition)
        now = fidelity(replace(condition, hints=(batch.hints,)))
        return self._convergence.add(step, now, settings.gain)

    def tags(self) -> Mapping[str, str]:
        found = self._convergence.step
        return {} if found is None else {"mezzotint.control_converged_at": str(found)}

    def _sample(
        self, control: nn.Module, noise: Tensor, condition: Condition, rng: Generator
    ) -> Tensor:
        assert isinstance(control, Control), "the part is one"
        base = self.base(next(self._model.parameters()))
        assert isinstance(base, DiffusionNetwork), "a base is one"
        network = ControlledNetwork(base, [ControlTerm(control)])
        return self._denoising.sample(network, noise, condition, rng)


class _Controlled:
    """An engine that is also given the hints and the base."""

    def __init__(self, engine: EngineLike, base: object, hints: Tensor) -> None:
        self._engine, self._base, self._hints = engine, base, hints

    @property
    def module(self) -> nn.Module:
        return self._engine.module

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Any:  # noqa: ANN401
        return self._engine(x, t, replace(condition, hints=(self._hints,)), self._base)


def _shown(hint: Tensor) -> Tensor:
    """A hint (B, C, H, W) in [0, 1] as an image in [-1, 1]: of other than 1 or 3 channels their
    mean."""
    if hint.shape[1] not in (1, 3):
        hint = hint.mean(dim=1, keepdim=True)
    return hint.expand(-1, 3, -1, -1) * 2 - 1
