"""Edits of images by their embedding and noise: variations, interpolations, text differences.

An image is (z, x_T): its CLIP embedding, and the noise from which the decoder generates it by DDIM
under that embedding (unCLIP, arXiv 2204.06125, 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.cascade import of_finished_images, upsample_in_turn
from mezzotint.inference.generator import Progress
from mezzotint.inference.images import from_bytes, to_bytes
from mezzotint.inference.unclip.generator import UnclipGenerator
from mezzotint.inference.unclip.spherical import (
    rotate_towards,
    slerp,
    slerp_noise,
    text_difference,
)
from models.diffusion.condition import Condition
from models.diffusion.inversion import encoding_times
from models.diffusion.sampling import NFE, DiffusionSampling, SamplerRun
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.grids import LogSnrTimesConfig
from models.diffusion.thresholding import NoThresholding
from models.finite import named_samples, require_finite
from models.nn.random import BatchGenerator

Key = tuple[str | int, ...]
"""Names the random numbers of an edited image."""


@dataclass(frozen=True)
class EditSettings:
    """How images are inverted and generated again."""

    steps: int = 50
    """Of DDIM, each way."""
    guidance: float = 1.0
    """Of the embedding, each way: 1 returns an unchanged image most exactly."""
    start: float = 0.03
    """The timestep at which images are taken as noisy ones."""
    seed: int = 0
    batch_size: int = 16
    """Images generated together."""


DEFAULTS = EditSettings()


@dataclass(frozen=True)
class ImageLatents:
    """Images as the decoder sees them; one row each."""

    embedding: Tensor
    """(n, D), as CLIP projects it."""
    noise: Tensor
    """(n, C, h, w): x_T, standard normal where the inversion is exact."""
    reconstruction: Tensor
    """(n, h, w, 3) uint8, at the decoder's size."""
    psnr: Tensor
    """(n,): of the reconstructions, in dB."""
    captions: tuple[str, ...]
    """For a decoder that reads captions; empty ones say nothing."""

    def row(self, index: int) -> "ImageLatents":
        """One image alone."""
        rows = slice(index, index + 1)
        return ImageLatents(
            self.embedding[rows],
            self.noise[rows],
            self.reconstruction[rows],
            self.psnr[rows],
            self.captions[rows],
        )


def invert(
    system: UnclipGenerator,
    images: Tensor,
    *,
    embedding: Tensor | None = None,
    captions: Sequence[str] = (),
    settings: EditSettings = DEFAULTS,
    progress: Progress | None = None,
) -> ImageLatents:
    """The latents of images (n, h, w, 3) uint8 at the decoder's size.

    `embedding` (n, D) is that of `ClipEmbedder.project_images`, by default of these images: give
    it where CLIP takes larger ones than the decoder.

    Raises:
        UserError: images of another size or without three colours, or not as many embeddings or
            captions.
        NonFiniteError: the noise or the reconstruction of an image are not finite.
    """
    check_images(system, images)
    if captions and len(captions) != len(images):
        raise UserError(f"captions: {len(captions)} for {len(images)} images; give one each")
    words = tuple(captions) or ("",) * len(images)
    if embedding is not None:
        system.check_embedding(embedding, (len(images),))
        embedding = embedding.expand(len(images), -1)
    names = [f"image {index}" for index in range(len(images))]

    def compute(block: range) -> Mapping[str, Tensor]:
        rows, device = slice(block.start, block.stop), system.runtime.device
        given = images[rows]
        z = system.clip.project_images(given) if embedding is None else embedding[rows]
        cond = system.decoder.condition(z.to(device), words[rows])
        run = inversion_run(system, settings)
        found = system.decoder.invert(run, cond, from_bytes(given.to(device)), progress)
        with named_samples(names[rows]):
            require_finite("its noise is", found.noise)
            shown = to_bytes(found.reconstruction)
        return {"embedding": z.cpu(), "noise": found.noise.cpu(), "shown": shown.cpu()}

    with system.runtime.inference():
        found = system.runtime.group.concatenate_blocks(compute, len(images), settings.batch_size)
    error = (found["shown"].double() - images.cpu().double()).square().flatten(1).mean(dim=1)
    psnr = 10 * (255**2 / error).log10()
    return ImageLatents(found["embedding"], found["noise"], found["shown"], psnr, words)


def variations(
    system: UnclipGenerator,
    latents: ImageLatents,
    etas: Sequence[float],
    *,
    number: int = 1,
    settings: EditSettings = DEFAULTS,
    progress: Progress | None = None,
) -> Tensor:
    """Images of the same embedding from the same noise: (n, etas, number, H, W, 3) uint8.

    `eta` is how much noise DDIM adds: 0 returns the image itself, larger ones change what the
    embedding does not say. A number has the same noise at every eta.
    """
    count = len(latents.captions)
    shown = []
    for index, eta in enumerate(etas):
        part = _part(progress, index, len(etas))
        rows = [(row, each) for row in range(count) for each in range(number)]
        picked = [row for row, _ in rows]
        images = render(
            system,
            latents.embedding[picked],
            latents.noise[picked],
            keys=[("variation", *row) for row in rows],
            captions=[latents.captions[row] for row in picked],
            eta=eta,
            settings=settings,
            progress=part,
        )
        shown.append(images.view(count, number, *images.shape[1:]))
    return torch.stack(shown, dim=1)


def interpolate(
    system: UnclipGenerator,
    latents: ImageLatents,
    fractions: Sequence[float],
    *,
    noise: bool = True,
    settings: EditSettings = DEFAULTS,
    progress: Progress | None = None,
) -> Tensor:
    """Images between two: (fractions, H, W, 3) uint8.

    Their embeddings lie on the arc between both, and so does their noise; without `noise` all have
    the first image's.

    Raises:
        UserError: not two images.
    """
    if len(latents.captions) != 2:
        raise UserError(f"interpolate: needs two images, got {len(latents.captions)}")
    (z1, z2), (x1, x2) = latents.embedding, latents.noise
    between = [slerp_noise(x1[None], x2[None], each)[0] if noise else x1 for each in fractions]
    captions = [latents.captions[int(each > 0.5)] for each in fractions]
    return render(
        system,
        torch.stack([slerp(z1, z2, each) for each in fractions]),
        torch.stack(between),
        keys=[("interpolation",)] * len(fractions),
        captions=captions,
        settings=settings,
        progress=progress,
    )


def text_edit(
    system: UnclipGenerator,
    latents: ImageLatents,
    source: str,
    target: str,
    thetas: Sequence[float],
    *,
    settings: EditSettings = DEFAULTS,
    progress: Progress | None = None,
) -> Tensor:
    """Images turned from what one caption says to what another one says.

    (n, thetas, H, W, 3) uint8. The embedding is turned by a part `theta` of its angle to the
    normalised difference of both captions' embeddings; at 0 it stays. The noise stays.

    Raises:
        UserError: CLIP reads both captions as the same.
    """
    direction = text_difference(*system.clip.texts([source, target]))
    return turn(system, latents, direction, thetas, settings=settings, progress=progress)


def turn(
    system: UnclipGenerator,
    latents: ImageLatents,
    directions: Tensor,
    thetas: Sequence[float],
    *,
    settings: EditSettings = DEFAULTS,
    progress: Progress | None = None,
) -> Tensor:
    """Images (n, thetas, H, W, 3) uint8 of embeddings turned towards directions (D,) or (n, D)."""
    turned = [rotate_towards(latents.embedding, directions, theta) for theta in thetas]
    count = len(latents.captions)
    rows = [row for row in range(count) for _ in thetas]
    images = render(
        system,
        torch.stack(turned, dim=1).flatten(0, 1),
        latents.noise[rows],
        keys=[("text", row) for row in rows],
        captions=[latents.captions[row] for row in rows],
        settings=settings,
        progress=progress,
    )
    return images.view(count, len(thetas), *images.shape[1:])


def render(
    system: UnclipGenerator,
    embedding: Tensor,
    noise: Tensor,
    *,
    keys: Sequence[Key],
    captions: Sequence[str],
    eta: float = 0.0,
    settings: EditSettings = DEFAULTS,
    progress: Progress | None = None,
) -> Tensor:
    """Images (m, H, W, 3) uint8 of embeddings (m, D) and noise (m, C, h, w).

    Whatever else is random, in DDIM and in the super-resolution models, depends on the seed and an
    image's key: images of one key differ by their latents alone.
    """
    following = of_finished_images(system.config.stage_sampling[: len(system.stages)])
    total = settings.steps + sum(each.steps for each in following)

    def compute(block: range) -> Mapping[str, Tensor]:
        rows, device, nfe = slice(block.start, block.stop), system.runtime.device, NFE()
        chosen = captions[rows]
        rng = BatchGenerator.of(
            [keyed_generator(settings.seed, "edit", *key) for key in keys[rows]]
        )
        cond = system.decoder.condition(embedding[rows].to(device), chosen)
        run = inversion_run(system, settings, eta)

        def report(done: int, _: int) -> None:
            if progress is not None:
                progress(block.start * total + done * len(block), len(keys) * total)

        low = system.decoder.decode(run, cond, noise[rows].to(device), rng, report)
        images = upsample_in_turn(
            system.stages, following, low, chosen, rng, nfe,
            progress=lambda done, _: report(settings.steps + done, total),
        )  # fmt: skip
        with named_samples([f"edited image {index}" for index in block]):
            return {"images": to_bytes(images).cpu()}

    with system.runtime.inference():
        return system.runtime.group.concatenate_blocks(compute, len(keys), settings.batch_size)[
            "images"
        ]


def inversion_run(
    system: UnclipGenerator, settings: EditSettings, eta: float = 0.0
) -> SamplerRun[Condition]:
    """DDIM along times that end above 0, where an image holds noise, without thresholding."""
    sampling = DiffusionSampling(
        solver=DDIM(eta=eta),
        steps=settings.steps,
        times=LogSnrTimesConfig(last=settings.start),
        guidance=settings.guidance,
        thresholding=NoThresholding(),
    )
    run = system.decoder.sampler_run(sampling, NFE())
    return replace(run, times=encoding_times(run.schedule, run.times))


def check_images(system: UnclipGenerator, images: Tensor) -> None:
    """Refuse other images than (n, h, w, 3) uint8 at the decoder's size.

    Raises:
        UserError: they are, with what they should be.
    """
    side = system.decoder.image_size
    wanted = f"(n, {side}, {side}, 3) uint8"
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != torch.uint8:
        raise UserError(
            f"images: have shape {tuple(images.shape)} and type {images.dtype}; the decoder takes "
            f"RGB images, {wanted}"
        )
    if tuple(images.shape[1:3]) != (side, side):
        height, width = images.shape[1:3]
        raise UserError(
            f"images: are of {width} x {height} pixels, but the decoder generates {side} x {side}; "
            f"resize them to {wanted}"
        )


def _part(progress: Progress | None, index: int, parts: int) -> Progress | None:
    """The progress of one of several equal parts."""
    if progress is None:
        return None
    return lambda done, total: progress(index * total + done, parts * total)
