"""An edit by Imagic: optimise an embedding, fine-tune networks, interpolate (arXiv 2210.09276)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.generator import ImageGenerator, Progress, Prompt, image_generator
from mezzotint.inference.images import to_bytes
from mezzotint.inference.imagic.config import ImagicConfig, Optimization
from mezzotint.inference.imagic.embedding import interpolated, with_embedding
from mezzotint.inference.imagic.fit import SAVE_SECONDS, Fitter
from mezzotint.inference.imagic.objective import (
    Loss,
    image_loss,
    mean_loss,
    rows,
    upsampling_loss,
)
from mezzotint.inference.imagic.subject import Subject, subject_of
from mezzotint.inference.imagic.tuning import TunedNetwork, merged_once, restored
from mezzotint.inference.imagic.work import WorkDirectory
from models.diffusion.condition import Condition
from models.nn.cpu.dispatch import kernels_in_format
from models.nn.random import BatchGenerator

LOSS_DRAWS = 8
"""Batches over which the losses of a report are averaged."""
ETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Phases = Callable[[str], Progress]
"""The progress callback of a phase, by its name."""


@dataclass(frozen=True)
class ImagicRequest:
    """What is edited, and what is made of it."""

    image: Tensor
    """(H, W, 3) uint8 at the system's size."""
    target: str
    etas: tuple[float, ...] = ETAS
    """Of the interpolation: 0 is the optimised embedding, 1 the target's; others extrapolate."""
    number: int = 1
    """Images for each eta, of the same noises for all."""
    seed: int = 0
    batch_size: int = 32
    """Images sampled together."""
    compares: bool = True
    """Whether the losses are measured, and the target is sampled without an edit."""

    def check(self, size: int) -> None:
        """Refuse what cannot be edited at this size.

        Raises:
            UserError: an image of another shape or type, an empty target, no eta, no number.
        """
        shape = tuple(self.image.shape)
        if shape != (size, size, 3) or self.image.dtype != torch.uint8:
            raise UserError(
                f"image: has shape {shape} of {self.image.dtype}; this system edits RGB images "
                f"({size}, {size}, 3) of torch.uint8"
            )
        if not self.target.strip():
            raise UserError("target: is empty; say what the edited image shows")
        if not self.etas or self.number < 1 or self.batch_size < 1:
            raise UserError("etas: give at least one, and a number of at least 1")


@dataclass(frozen=True)
class ImagicResult:
    """Images on the CPU, (..., H, W, 3) uint8."""

    images: Tensor
    """(etas, number, H, W, 3)."""
    unedited: Tensor
    """(number, H, W, 3): of the target's caption by the system as it was, from the same noises;
    none unless the request compares."""
    losses: Mapping[str, float]
    """Over the same times and noises: at the target embedding, the optimised one, and after
    fine-tuning; none unless the request compares."""
    digests: Mapping[str, str]
    """Of the weights of each network that was tuned, before the edit and, checked, after it."""


def edit(
    generator: ImageGenerator,
    request: ImagicRequest,
    config: ImagicConfig,
    *,
    work: Path | None = None,
    phases: Phases = lambda name: lambda done, total: None,
    save_seconds: float = SAVE_SECONDS,
) -> ImagicResult:
    """Edit an image; the system is afterwards the one that it was.

    With a `work` directory an edit that was interrupted goes on, and one that is finished only
    samples, such as for other etas.

    Raises:
        UserError: a system, image or directory that does not suit.
        NonFiniteError: the optimisation diverged.
    """
    request.check(generator.image_size)
    subject = subject_of(generator)
    plain = subject.condition(request.target)
    with subject.runtime.inference():
        target = subject.embedding(plain)
    chosen = range(len(subject.stages)) if config.upsampler.steps else range(0)
    networks = [subject.tuned, *map(subject.tuned_stage, chosen)]
    for each in networks:
        each.check(config.rank)
    digests = {each.name: each.digest() for each in networks}
    directory = WorkDirectory.open(
        work, _about(request, config, digests), writes=subject.runtime.group.is_main
    )
    fitter = Fitter(subject.runtime, directory, config.seed, save_seconds)
    with restored(networks, digests, rank=config.rank), ExitStack() as stack:
        with subject.runtime.autocast():
            stack.enter_context(kernels_in_format([each.network for each in networks]))
        unedited = request.image[None][:0]
        if request.compares:
            unedited = _sample(subject, request, [plain], plain, phases("sample unedited"))[0]
        training = _Training(subject, request, config, fitter, phases)
        optimised, losses = training.run(plain, target, networks)
        conditions = [
            with_embedding(plain, interpolated(optimised, target, eta)) for eta in request.etas
        ]
        images = _sample(subject, request, conditions, plain, phases("sample"))
    return ImagicResult(images, unedited, losses, digests)


def _about(
    request: ImagicRequest, config: ImagicConfig, digests: Mapping[str, str]
) -> Mapping[str, object]:
    """What decides the trained parts of an edit."""
    pixels = bytes(request.image.contiguous().numpy().data)
    return {
        "target": request.target,
        "image": sha256(pixels.hex()),
        "weights": dict(digests),
        "settings": config.model_dump(mode="json"),
    }


@dataclass(frozen=True)
class _Training:
    """The stages A (embedding) and B (networks)."""

    subject: Subject
    request: ImagicRequest
    config: ImagicConfig
    fitter: Fitter
    phases: Phases

    def run(
        self, plain: Condition, target: Tensor, networks: Sequence[TunedNetwork]
    ) -> tuple[Tensor, Mapping[str, float]]:
        """The optimised embedding (1, L, C) and the losses; networks are tuned in place."""
        subject, config, image = self.subject, self.config, self.request.image
        embedding = nn.Parameter(target.float().clone())
        with subject.runtime.inference():
            sample = subject.clean(subject.image_at(image, subject.space.image_size))
        loss = image_loss(
            subject.network, sample, lambda: with_embedding(plain, embedding), config.batch
        )
        losses = self._loss("target embedding", loss)
        self.fitter.fit(
            "embedding",
            {"embedding": embedding},
            loss,
            config.embedding,
            self.phases("optimise the embedding"),
        )
        embedding.requires_grad = False
        losses |= self._loss("optimised embedding", loss)
        self._tune(networks[0], loss, config.network)
        losses |= self._loss("fine-tuned", loss)
        for index, tuned in enumerate(networks[1:]):
            self._tune(tuned, self._upsampling_loss(index), config.upsampler)
        return embedding.detach(), losses

    def _tune(self, tuned: TunedNetwork, loss: Loss, settings: Optimization) -> None:
        parameters = tuned.parameters(self.config.rank, self.config.seed)
        with tuned.training():
            phase = self.phases(f"fine-tune {tuned.name}")
            self.fitter.fit(tuned.name, parameters, loss, settings, phase)

    def _upsampling_loss(self, index: int) -> Loss:
        """Of a stage under the target's own embedding (arXiv 2210.09276, 3.3)."""
        stage = self.subject.stages[index]
        image = self.subject.image_at(self.request.image, stage.image_size)
        with self.subject.runtime.inference():
            condition = stage.condition([self.request.target])
        factor = stage.network.config.factor
        return upsampling_loss(stage.network, image, factor, condition, self.config.batch)

    def _loss(self, name: str, loss: Loss) -> dict[str, float]:
        if not self.request.compares:
            return {}
        generators = [
            keyed_generator(self.config.seed, "imagic", "loss", number)
            for number in range(LOSS_DRAWS)
        ]
        with self.subject.runtime.inference():
            return {name: mean_loss(loss, generators)}


def _sample(
    subject: Subject,
    request: ImagicRequest,
    conditions: Sequence[Condition],
    plain: Condition,
    progress: Progress,
) -> Tensor:
    """Images (conditions, number, H, W, 3) uint8, the same noise for a number."""
    chosen = list(product(conditions, range(request.number)))
    prompt = Prompt(request.target)

    def compute(block: range) -> Mapping[str, Tensor]:
        part = chosen[block.start : block.stop]
        rng = BatchGenerator.of(
            [image_generator(request.seed, number, prompt) for _, number in part]
        )
        together = stacked([condition for condition, _ in part])

        def report(done: int, total: int) -> None:
            progress(block.start + len(part) * done // total, len(chosen))

        images = subject.sample(together, plain, request.target, rng, report)
        return {"images": to_bytes(images).cpu()}

    group, size = subject.runtime.group, request.batch_size
    with subject.runtime.inference(), merged_once():
        images = group.concatenate_blocks(compute, len(chosen), size)["images"]
    return images.view(len(conditions), request.number, *images.shape[1:])


def stacked(conditions: Sequence[Condition]) -> Condition:
    """Conditions of one row each, which differ in their embedding alone, as one batch."""
    count = len(conditions)
    first = rows(conditions[0], count)
    for name in ("text_states", "features"):
        if getattr(first, name) is not None:
            together = torch.cat([getattr(each, name) for each in conditions])
            return replace(first, **{name: together})  # type: ignore[arg-type]
    return first
