"""Request, result and interface of every generator, and the loop that cuts requests into blocks.

Each image has a random generator of its own, keyed by (seed, prompt, number): it is the same
whatever else is in the request, up to rounding that depends on what shares its batch: one level of
255 in fp32, a few in bf16. Codes are sampled in fp32, where rounding changes next to none of them.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.config import SystemConfig
from mezzotint.inference.editing import ImageEdit
from mezzotint.inference.runtime import Runtime
from models.diffusion.sampling import NFE
from models.finite import named_samples
from models.frozen_text import CaptionTokens
from models.nn.random import BatchGenerator

Progress = Callable[[int, int], None]
"""Called with the images that are done and their total."""


@dataclass(frozen=True)
class Prompt:
    """What an image shows: a caption, a class, both, or neither (an unconditional sample)."""

    text: str | None = None
    label: int | None = None
    key: str = ""
    """Makes equal prompts of a request distinct: their images are then independent samples."""

    def __post_init__(self) -> None:
        try:
            (self.text or "").encode()
        except UnicodeEncodeError as error:
            raise UserError(f"a prompt is not UTF-8 ({self.text!a}); type it again") from error


@dataclass(frozen=True)
class GenerationRequest:
    """`number` images for each prompt."""

    prompts: tuple[Prompt, ...]
    number: int = 1
    seed: int = 0
    batch_size: int = 32
    """Images generated together. Blocks depend on the request alone, not on the processes."""
    noise: Tensor | None = None
    """(number, C, h, w), in the shape of what a diffusion model generates, pixels or latents: where
    it starts, instead of noise of the seed."""
    edit: ImageEdit | None = None
    """An image to start from or to inpaint, for a diffusion model."""
    hints: tuple[Tensor, ...] = ()
    """For each control of a diffusion system a hint in [0, 1], (C, H, W), or one for each prompt
    (P, C, H, W)."""
    image_embedding: Tensor | None = None
    """(P, D) or (D,): CLIP embeddings of images, as the model projects them, from which an unCLIP
    system generates instead of those of its prior; one for each prompt, or one for all."""
    prefix_codes: Tensor | None = None
    """(r, w) int64: the first rows of codes of every image, for a prior over codes."""

    def rows(self) -> list[tuple[int, Prompt]]:
        """Number and prompt of every image, in the order of generation.

        Raises:
            UserError: there are none.
        """
        if not self.prompts or self.number < 1:
            raise UserError("prompts: the request is empty")
        return [(number, prompt) for number in range(self.number) for prompt in self.prompts]

    def hints_of(self, rows: range, device: torch.device) -> tuple[Tensor, ...]:
        """The hints of some of the `rows`, (B, C, H, W) each, on a device."""
        prompts = [row % len(self.prompts) for row in rows]
        return tuple(
            (hint[prompts] if hint.ndim == 4 else hint.expand(len(rows), -1, -1, -1))
            .float()
            .to(device)
            for hint in self.hints
        )

    def noise_of(self, numbers: Sequence[int], device: torch.device) -> Tensor | None:
        """The noise of images by their numbers, (B, C, h, w), on a device."""
        return None if self.noise is None else self.noise[list(numbers)].to(device)

    def embeddings_of(self, rows: range, device: torch.device) -> Tensor | None:
        """The image embeddings of some of the `rows`, (B, D), on a device."""
        given = self.image_embedding
        if given is None:
            return None
        prompts = [row % len(self.prompts) for row in rows]
        return (given[prompts] if given.ndim == 2 else given.expand(len(rows), -1)).to(device)

    def refuse(
        self, kind: str, *, noise: bool = False, prefix: bool = False, embedding: bool = True
    ) -> None:
        """Refuse inputs that a system of this kind does not take.

        Raises:
            UserError: the request has one.
        """
        if noise and self.edit is not None:
            raise UserError(f"image: a {kind} does not start from a given image; leave it out")
        if noise and self.hints:
            raise UserError(f"--control: a {kind} has no controls; leave the hints out")
        if noise and self.noise is not None:
            raise UserError(f"noise: a {kind} does not start from given noise; leave it out")
        if prefix and self.prefix_codes is not None:
            raise UserError(f"prefix_codes: a {kind} generates no single grid of codes")
        if embedding and self.image_embedding is not None:
            raise UserError(
                f"image_embedding: a {kind} does not generate from image embeddings; leave it out"
            )

    def require_captions(self, kind: str) -> None:
        """Check the prompts of a system that is conditioned on captions and nothing else.

        Raises:
            UserError: a prompt has a class or no caption.
        """
        if any(prompt.text is None for prompt in self.prompts):
            raise UserError(f"captions: a {kind} generates from captions; give some")
        if any(prompt.label is not None for prompt in self.prompts):
            raise UserError(f"--class: a {kind} is not conditioned on classes; leave it out")


@dataclass(frozen=True)
class GenerationResult:
    """The images of all prompts, on the CPU."""

    images: Tensor
    """(P, N, H, W, 3) uint8."""
    scores: Tensor | None
    """(P, N): CLIP cosine of image and caption; None without a ranker."""
    nfe: NFE | None
    """Network evaluations per image; None where a system does not count them."""
    seconds: float
    codes: Tensor | None = None
    """(P, N, h, w) int64 of a prior over one grid of codes."""

    def top(self, count: int = 1) -> "GenerationResult":
        """The best-scored `count` images of each prompt, best first.

        Without scores the first ones; equal scores keep their order.
        """
        if self.scores is None:
            chosen = torch.arange(count, device="cpu").expand(len(self.images), -1)
        else:
            chosen = ranking(self.scores)[:, :count]
        rows = torch.arange(len(chosen), device="cpu")[:, None]
        return replace(
            self,
            images=self.images[rows, chosen],
            scores=None if self.scores is None else self.scores[rows, chosen],
            codes=None if self.codes is None else self.codes[rows, chosen],
        )


@dataclass(frozen=True)
class SamplerStep:
    """State of a diffusion sampler."""

    done: int
    total: int
    time: float
    x: Tensor
    """(B, 3, H, W); of latents it is decoded."""
    denoised: Tensor
    """(B, 3, H, W): x_0 as predicted from x; after the last step x itself."""


StepCallback = Callable[[SamplerStep], None]
"""Observes the sampling of the first block."""


@dataclass(frozen=True)
class Block:
    """Images of a request that are generated together, by one process."""

    prompts: Sequence[Prompt]
    rng: BatchGenerator
    noise: Tensor | None
    prefix_codes: Tensor | None
    edit: ImageEdit | None
    """With one row for each image."""
    hints: tuple[Tensor, ...]
    """(B, C, H, W) each."""
    image_embedding: Tensor | None
    """(B, D)."""
    report: Progress
    """Called with the steps that are done and their total."""
    callback: StepCallback | None

    @property
    def captions(self) -> list[str]:
        """Of the prompts; empty where they have none."""
        return [prompt.text or "" for prompt in self.prompts]


class ImageGenerator(ABC):
    """A trained system that generates images, in blocks of `batch_size`.

    Each block is computed whole by one process; the first image of every prompt comes first, then
    every second one.
    """

    runtime: Runtime
    config: SystemConfig
    reports_steps: ClassVar[bool] = False
    """Whether `generate` takes a callback."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side of the images in pixels."""

    @property
    def candidates(self) -> int:
        """Images that its settings rank for each one wanted; 1 without a ranker."""
        return 1

    @property
    def text_encoders(self) -> Mapping[str, CaptionTokens]:
        """What reads captions, by its role: `model`, and `ranker` where candidates are ranked."""
        return {}

    def lost(self, caption: str) -> Mapping[str, str]:
        """The end of a caption that is not read, by role; empty where all of it is."""
        found = {role: each.lost(caption) for role, each in self.text_encoders.items()}
        return {role: lost for role, lost in found.items() if lost}

    def _check(self, request: GenerationRequest) -> None:
        """Refuse what the system does not take, before anything is computed."""
        request.refuse(self.config.kind, noise=True, prefix=True)
        request.require_captions(self.config.kind)

    @abstractmethod
    def _sample(self, block: Block) -> Mapping[str, Tensor]:
        """`images` (B, H, W, 3) uint8 of a block; maybe `scores` (B,), `codes` (B, h, w), `nfe`."""

    def generate(
        self,
        request: GenerationRequest,
        *,
        progress: Progress | None = None,
        callback: StepCallback | None = None,
    ) -> GenerationResult:
        """Images for every prompt, the same on all processes of the generator's group.

        Raises:
            UserError: the system cannot be conditioned on what a prompt has, or reports no steps
                to a callback.
            NonFiniteError: an image, its codes or its score are not finite.
        """
        self._check(request)
        if callback is not None and not self.reports_steps:
            raise UserError(f"callback: a {self.config.kind} reports no steps; leave it out")
        start, rows, device = time.monotonic(), request.rows(), self.runtime.device

        def compute(indices: range) -> Mapping[str, Tensor]:
            chosen = rows[indices.start : indices.stop]
            together = min(self.runtime.group.size * request.batch_size, len(rows) - indices.start)

            def report(done: int, total: int) -> None:
                if progress is not None:
                    progress(indices.start + together * done // total, len(rows))

            numbers, prompts = zip(*chosen, strict=True)
            block = Block(
                prompts=prompts,
                rng=BatchGenerator.of([image_generator(request.seed, *row) for row in chosen]),
                noise=request.noise_of(numbers, device),
                prefix_codes=request.prefix_codes,
                edit=None if request.edit is None else request.edit.of(numbers, device),
                hints=request.hints_of(indices, device),
                image_embedding=request.embeddings_of(indices, device),
                report=report,
                callback=None if indices.start else callback,
            )
            with named_samples([image_name(*row) for row in chosen]):
                return {name: each.cpu() for name, each in self._sample(block).items()}

        with self.runtime.inference():
            parts = list(self.runtime.group.map_blocks(compute, len(rows), request.batch_size))

        def by_prompt(name: str) -> Tensor | None:
            if name not in parts[0]:
                return None
            whole = torch.cat([part[name] for part in parts])
            return whole.view(request.number, -1, *whole.shape[1:]).transpose(0, 1).contiguous()

        images, nfe = by_prompt("images"), parts[0].get("nfe")
        assert images is not None, "every block has images"
        return GenerationResult(
            images=images,
            scores=by_prompt("scores"),
            nfe=None if nfe is None else NFE(*nfe.tolist()),
            seconds=time.monotonic() - start,
            codes=by_prompt("codes"),
        )

    def reconstruct(self, images: Tensor) -> Tensor | None:
        """The nearest images (n, H, W, 3) uint8 that can be generated; None: it can do any image.

        That is so of diffusion models; of a prior over codes they are what the codes decode to.
        """
        return None

    @abstractmethod
    def protocol(self) -> Mapping[str, object]:
        """Model digests, sampler, steps, guidance: what is needed to repeat a result."""


def image_name(number: int, prompt: Prompt) -> str:
    """One image of a prompt, for messages."""
    words = [repr(prompt.text)] if prompt.text is not None else []
    words += [] if prompt.label is None else [f"class {prompt.label}"]
    return f"image {number} of {', '.join(words) or 'the unconditional prompt'}"


def image_generator(seed: int, number: int, prompt: Prompt) -> torch.Generator:
    """The random generator of one image of a prompt."""
    label = "" if prompt.label is None else prompt.label
    return keyed_generator(seed, "image", prompt.text or "", label, prompt.key, number)


def ranking(scores: Tensor) -> Tensor:
    """Indices (P, N) from the best to the worst of scores (P, N); equal ones keep their order."""
    return scores.argsort(dim=1, descending=True, stable=True)
