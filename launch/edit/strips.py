"""The edits of the command line: what is generated of images, and how a strip shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from mezzotint.inference.generator import Progress
from mezzotint.inference.unclip import edits
from mezzotint.inference.unclip.edits import EditSettings, ImageLatents
from mezzotint.inference.unclip.generator import UnclipGenerator


@dataclass(frozen=True)
class Strip:
    """Edited images in rows and columns."""

    images: Tensor
    """(rows, columns, n, H, W, 3) uint8."""
    columns: tuple[float, ...]
    scores: Mapping[str, Tensor]
    """(rows, columns, n): cosines of CLIP, by what an image is compared with."""


class Edit(Protocol):
    """One kind of edit with its settings."""

    @property
    def axis(self) -> str:
        """What the columns are values of."""

    @property
    def compared(self) -> tuple[str, ...]:
        """What edited images are compared with, in the order of the scores."""

    @property
    def captions(self) -> tuple[str, ...]:
        """What it reads besides the images."""

    def check(self, images: int) -> None:
        """Refuse a number of images, or settings, that do not fit.

        Raises:
            UserError: they do not.
        """

    def count(self, images: int) -> int:
        """How many images it generates."""

    def run(
        self,
        system: UnclipGenerator,
        latents: ImageLatents,
        settings: EditSettings,
        progress: Progress,
    ) -> Strip:
        """The edited images."""


@dataclass(frozen=True)
class Variations:
    """Images of the same embedding, with more and more noise in DDIM."""

    etas: tuple[float, ...]
    number: int = 1
    axis: str = "eta"
    compared: tuple[str, ...] = ("their source",)
    captions: tuple[str, ...] = ()

    def check(self, images: int) -> None:
        del images
        if not self.etas or min(self.etas) < 0:
            raise UserError("--etas: give numbers of at least 0, as in 0,0.5,1")

    def count(self, images: int) -> int:
        return images * len(self.etas) * self.number

    def run(
        self,
        system: UnclipGenerator,
        latents: ImageLatents,
        settings: EditSettings,
        progress: Progress,
    ) -> Strip:
        images = edits.variations(
            system, latents, self.etas, number=self.number, settings=settings, progress=progress
        )
        source = latents.embedding[:, None, None]
        return Strip(images, self.etas, {"source": cosines(system, images, source)})


@dataclass(frozen=True)
class Interpolation:
    """Images between two."""

    count_between: int
    noise: bool = True
    axis: str = "from the first image to the second"
    compared: tuple[str, ...] = ("the first image", "the second")
    captions: tuple[str, ...] = ()

    def check(self, images: int) -> None:
        if images != 2:
            raise UserError(f"interpolate: takes two images, got {images}")

    def count(self, images: int) -> int:
        del images
        return self.count_between + 2

    def run(
        self,
        system: UnclipGenerator,
        latents: ImageLatents,
        settings: EditSettings,
        progress: Progress,
    ) -> Strip:
        last = self.count_between + 1
        fractions = tuple(step / last for step in range(last + 1))
        found = edits.interpolate(
            system, latents, fractions, noise=self.noise, settings=settings, progress=progress
        )
        images = found[None, :, None]
        scores = {
            name: cosines(system, images, latents.embedding[index].expand(1, 1, 1, -1))
            for index, name in enumerate(("first", "second"))
        }
        return Strip(images, fractions, scores)


@dataclass(frozen=True)
class TextEdit:
    """Images turned from what one caption says to what another one says."""

    source: str
    target: str
    thetas: tuple[float, ...]
    axis: str = "theta"

    @property
    def compared(self) -> tuple[str, ...]:
        return f"'{self.source}'", f"'{self.target}'"

    @property
    def captions(self) -> tuple[str, ...]:
        return self.source, self.target

    def check(self, images: int) -> None:
        del images
        if not self.thetas or min(self.thetas) < 0 or max(self.thetas) > 1:
            raise UserError("--thetas: give numbers from 0 to 1, as in 0,0.25,0.5")

    def count(self, images: int) -> int:
        return images * len(self.thetas)

    def run(
        self,
        system: UnclipGenerator,
        latents: ImageLatents,
        settings: EditSettings,
        progress: Progress,
    ) -> Strip:
        images = edits.text_edit(
            system,
            latents,
            self.source,
            self.target,
            self.thetas,
            settings=settings,
            progress=progress,
        )[:, :, None]
        words = system.clip.texts(self.captions)[:, None, None, None]
        scores = dict(zip(("from", "to"), (cosines(system, images, w) for w in words), strict=True))
        return Strip(images, self.thetas, scores)


def cosines(system: UnclipGenerator, images: Tensor, embedding: Tensor) -> Tensor:
    """Of images (rows, columns, n, H, W, 3) with embeddings (rows or 1, 1, 1, D)."""
    flat = images.flatten(0, 2)
    with system.runtime.inference():
        found = torch.cat([system.clip.images(part) for part in torch.split(flat, 64)])
    return F.cosine_similarity(found.view(*images.shape[:3], -1), embedding, dim=-1)


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers as in 0,0.5,1.

    Raises:
        UserError: something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{option} {text}: looks like 0,0.5,1") from error


def shown_scores(scores: Mapping[str, Tensor], index: Sequence[int]) -> str:
    """The cosines of one cell, the mean over its images."""
    row, column = index
    return ", ".join(
        f"{name} {float(each[row, column].mean()):.2f}" for name, each in scores.items()
    )
