"""Image-to-image and inpainting: what a request gives besides its prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.inference.latent_space import ImageSpace
from models import store
from models.diffusion.condition import Condition
from models.diffusion.inpainting import coarse_mask, with_known_region
from models.diffusion.sampling import SamplerRun
from models.diffusion.unet.network import UNetConfig

C = TypeVar("C")
KNOWN_REGION = "known-region replacement"
"""How a model inpaints that was not trained for it."""
TRAINED = "by the model, which was trained for it"


def inpaints(model: str) -> bool:
    """Whether the model in a directory was trained to inpaint."""
    config = store.describe(model).config
    return isinstance(config, UNetConfig) and config.inpainting is not None


@dataclass(frozen=True)
class ImageEdit:
    """An image to start from, how much of it is replaced, and where."""

    image: Tensor
    """(3, H, W), or one for each number (number, 3, H, W), in [-1, 1]."""
    strength: float = 1.0
    """Part of the sampling steps that are taken: 1 starts from noise alone."""
    mask: Tensor | None = None
    """(1, H, W) or (number, 1, H, W): 1 is repainted, 0 is kept; None repaints everything."""

    def check(self, number: int, size: int) -> None:
        """Refuse what does not fit a request of `number` images per prompt at `size` pixels.

        Raises:
            UserError: a strength outside (0, 1], or another shape, values or count.
        """
        if not 0 < self.strength <= 1:
            raise UserError(f"strength {self.strength:g}: must lie above 0 and be at most 1")
        for name, value, channels in (("image", self.image, 3), ("mask", self.mask, 1)):
            if value is None:
                continue
            if tuple(value.shape) not in ((channels, size, size), (number, channels, size, size)):
                raise UserError(
                    f"{name}: has shape {tuple(value.shape)}; this system takes ({channels}, "
                    f"{size}, {size}), or {number} of them"
                )
            if not bool(torch.isfinite(value).all()):
                raise UserError(f"{name}: has values that are not finite")
        if self.mask is not None and not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise UserError("mask: holds other values than 0 (kept) and 1 (repainted)")
        if self.mask is None and self.strength == 1:
            raise UserError(
                "image: at strength 1 nothing of it is left; set a lower strength, or give a mask"
            )

    def of(self, numbers: Sequence[int], device: torch.device) -> "ImageEdit":
        """The same for these images of a request, one row each: image (B, ...), mask (B, ...)."""

        def rows(value: Tensor) -> Tensor:
            chosen = value.float()[list(numbers)] if value.ndim == 4 else value.float()
            return chosen.expand(len(numbers), *chosen.shape[-3:]).to(device)

        return replace(
            self, image=rows(self.image), mask=None if self.mask is None else rows(self.mask)
        )


def start_of(steps: int, strength: float) -> int:
    """The steps of a grid that `strength` leaves out: `int(steps x strength)` are taken.

    The convention of diffusers' image-to-image pipelines.

    Raises:
        UserError: none is left.
    """
    taken = min(int(steps * strength), steps)
    if taken < 1:
        raise UserError(
            f"strength {strength:g}: takes none of {steps} steps; raise it, or the number of steps"
        )
    return steps - taken


def edited_run(
    run: SamplerRun[C], edit: ImageEdit, space: ImageSpace, noise: Tensor, *, trained: bool = False
) -> tuple[SamplerRun[C], Tensor]:
    """The rest of a sampler's run, and x at its first time, of an edit with one row per image.

    `noise` (B, C, h, w) is standard normal; it hides the image, and the known region at every step.
    A network that was `trained` to inpaint is given the known region, so it is not replaced.
    """
    known = space.encode(edit.image)
    first = start_of(len(run.times) - 1, edit.strength)
    if edit.mask is not None and not trained:
        keep = coarse_mask(edit.mask, (known.shape[2], known.shape[3])) == 0
        denoiser = with_known_region(run.denoiser, run.schedule, known, noise, keep)
        run = replace(run, denoiser=denoiser)
    if first == 0:
        return run, run.start(noise)
    run = replace(run, times=run.times[first:], solver=run.solver.from_step(first))
    try:
        run.solver.check(len(run.times) - 1)
    except ValueError as error:
        raise UserError(f"strength {edit.strength:g}: {error}") from error
    here = run.schedule.at(run.times[0])
    return run, float(here.alpha) * known + float(here.sigma) * noise


def with_kept(cond: Condition, space: ImageSpace, images: Tensor, mask: Tensor) -> Condition:
    """The condition with what a network is given that was trained to inpaint.

    That is images (B, 3, H, W) where the mask (B, 1, H, W) is 0.
    """
    size = space.shape[1], space.shape[2]
    masked = space.encode(images * (1 - mask))
    return replace(cond, mask=coarse_mask(mask, size), masked=masked)


def with_nothing_kept(
    cond: Condition, space: ImageSpace, count: int, device: torch.device
) -> Condition:
    """The same for `count` images of which everything is generated."""
    side = space.image_size
    images = torch.zeros(count, 3, side, side, device=device)
    return with_kept(cond, space, images, torch.ones(count, 1, side, side, device=device))


def paste_kept(images: Tensor, edit: ImageEdit) -> Tensor:
    """Generated images (B, 3, H, W) with the kept pixels of the given ones."""
    return images if edit.mask is None else torch.where(edit.mask == 0, edit.image, images)
