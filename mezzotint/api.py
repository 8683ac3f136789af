"""Mezzotint from Python: generate with trained systems, open data, train, evaluate.

    import mezzotint

    system = mezzotint.load("runs/quickstart", system="cascade", device="cuda")
    images = system.generate(["a caption"], number=4, seed=0).images

What a user can correct raises `mezzotint.common.errors.UserError`, with the next step.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import Dataset
from data_pipeline.dataset import open_dataset as open_configured
from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluate as run_evaluation
from evaluation.result import EvaluationResult
from mezzotint.common.errors import UserError
from mezzotint.inference.editing import ImageEdit
from mezzotint.inference.generator import GenerationRequest, GenerationResult, Progress, Prompt
from mezzotint.inference.images import from_bytes
from mezzotint.inference.imagic.config import ImagicConfig
from mezzotint.inference.imagic.edit import ETAS, ImagicRequest, ImagicResult
from mezzotint.inference.imagic.edit import edit as imagic_edit
from mezzotint.inference.load import AnyGenerator, load_generator
from mezzotint.inference.model_lookup import find_system
from mezzotint.inference.runtime import Precision
from mezzotint.inference.unclip import edits
from mezzotint.inference.unclip.edits import DEFAULTS, EditSettings, ImageLatents
from mezzotint.inference.unclip.generator import UnclipGenerator
from trainer.recipe import explain, read_tree, validate
from trainer.recipe import load as load_recipe
from trainer.run import RunDirectory

IMAGIC_DEFAULTS = ImagicConfig()
EVALUATION: TypeAdapter[EvaluationConfig] = TypeAdapter(EvaluationConfig)


@dataclass(frozen=True)
class EditedImages:
    """Edited images, and what their sources were inverted to."""

    images: Tensor
    """(..., H, W, 3) uint8 on the CPU."""
    latents: ImageLatents
    """Of the sources: embedding, noise, and the PSNR at which they come back."""


@dataclass(frozen=True)
class System:
    """A trained system on a device."""

    generator: AnyGenerator

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""
        return self.generator.image_size

    def generate(
        self,
        captions: Sequence[str] | None = None,
        *,
        labels: Sequence[int] | None = None,
        number: int = 1,
        candidates: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        image: Tensor | None = None,
        strength: float = 1.0,
        mask: Tensor | None = None,
        hints: Sequence[Tensor] = (),
        progress: Progress | None = None,
    ) -> GenerationResult:
        """`number` images for every caption with every class.

        `images` of the result are (P, number, H, W, 3) uint8 on the CPU, P the number of captions
        times the number of classes. An image depends on the seed, its caption and class, and its
        number, and not on the others. Without captions and classes it is unconditional, P = 1. A
        system that ranks `candidates` returns the best of each prompt, best first; None is the
        number of its settings. A system with controls is given a hint (C, H, W) in [0, 1] for
        each control, or one for each prompt (P, C, H, W).

        A diffusion model starts from `image` (H, W, 3) uint8 where one is given, at its own size:
        `strength` is the part of the steps that are taken, and where `mask` (H, W) bool is false
        its pixels are kept.

        Raises:
            UserError: the system is not conditioned on captions, or on classes, or takes no image.
        """
        if isinstance(captions, str):
            raise UserError("captions: give a list of captions, not one string")
        pairs = product((None,) if captions is None else captions, labels or (None,))
        request = GenerationRequest(
            prompts=tuple(Prompt(text, label) for text, label in pairs),
            number=max(number, candidates or self.generator.candidates),
            seed=seed,
            batch_size=batch_size,
            edit=_edit(image, strength, mask),
            hints=tuple(hints),
        )
        return self.generator.generate(request, progress=progress).top(number)

    def variations(
        self,
        images: Tensor,
        *,
        etas: Sequence[float] = (0.0, 0.5, 1.0),
        number: int = 1,
        captions: Sequence[str] = (),
        embedding: Tensor | None = None,
        settings: EditSettings = DEFAULTS,
    ) -> EditedImages:
        """Images (n, etas, number, H, W, 3) of the CLIP embeddings of given ones, by unCLIP.

        `images` (n, h, w, 3) uint8 have the decoder's size. They are inverted; DDIM then generates
        from the noise found, and adds noise by eta: at 0 the images come back. `captions` are for
        a decoder that reads them. `embedding` (n, D) replaces the CLIP embeddings of the images.

        Raises:
            UserError: a system without a decoder of image embeddings, or images of another size.
        """
        system = self._unclip("variations")
        latents = edits.invert(
            system, images, embedding=embedding, captions=captions, settings=settings
        )
        found = edits.variations(system, latents, etas, number=number, settings=settings)
        return EditedImages(found, latents)

    def interpolate(
        self,
        images: Tensor,
        *,
        fractions: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        noise: bool = True,
        captions: Sequence[str] = (),
        embedding: Tensor | None = None,
        settings: EditSettings = DEFAULTS,
    ) -> EditedImages:
        """Images (fractions, H, W, 3) between two (2, h, w, 3), by unCLIP; else as `variations`.

        Embeddings are interpolated on a sphere, and so is the noise of both images; without
        `noise` it is that of the first.

        Raises:
            UserError: as `variations`, or not two images.
        """
        system = self._unclip("interpolate")
        latents = edits.invert(
            system, images, embedding=embedding, captions=captions, settings=settings
        )
        found = edits.interpolate(system, latents, fractions, noise=noise, settings=settings)
        return EditedImages(found, latents)

    def text_diff(
        self,
        images: Tensor,
        source: str,
        target: str,
        *,
        thetas: Sequence[float] = (0.0, 0.15, 0.3, 0.45),
        captions: Sequence[str] = (),
        embedding: Tensor | None = None,
        settings: EditSettings = DEFAULTS,
    ) -> EditedImages:
        """Images (n, thetas, H, W, 3) turned from what `source` says to what `target` says.

        Theta is the part of the angle to the difference of both captions' embeddings; at 0 the
        images come back. Else as `variations`.

        Raises:
            UserError: as `variations`, or captions that CLIP reads as the same.
        """
        system = self._unclip("text_diff")
        latents = edits.invert(
            system, images, embedding=embedding, captions=captions, settings=settings
        )
        found = edits.text_edit(system, latents, source, target, thetas, settings=settings)
        return EditedImages(found, latents)

    def imagic(
        self,
        image: Tensor,
        target: str,
        *,
        etas: Sequence[float] = ETAS,
        number: int = 1,
        seed: int = 0,
        settings: ImagicConfig = IMAGIC_DEFAULTS,
        work: str | Path | None = None,
        compares: bool = True,
    ) -> ImagicResult:
        """Images (etas, number, H, W, 3) of one (H, W, 3) uint8 changed by a target text.

        By Imagic, with the cascade or the diffusion model of captions, whose image size `image`
        has; the system is afterwards the one that it was. At eta 0 the image comes back, at 1 it is
        the target's. `work` is a directory in which what is trained is kept: an interrupted edit
        goes on from there, and one with other `etas` only samples. Without
        `compares` no losses are measured, and the target is not sampled without an edit.

        Raises:
            UserError: another kind of system, an image of another size, or a directory of another
                edit.
        """
        request = ImagicRequest(image, target, tuple(etas), number, seed, compares=compares)
        return imagic_edit(
            self.generator, request, settings, work=None if work is None else Path(work)
        )

    def _unclip(self, method: str) -> UnclipGenerator:
        if isinstance(self.generator, UnclipGenerator):
            return self.generator
        raise UserError(
            f"{method}: a system of kind {self.generator.config.kind} has no decoder of image "
            "embeddings, which edits need; load an unclip system, or the run of its decoder"
        )

    def reconstruct(self, images: Tensor) -> Tensor:
        """The nearest images to (n, H, W, 3) uint8 that the system can generate.

        Those of its autoencoder's codes; a diffusion model can generate any image.
        """
        found = self.generator.reconstruct(images)
        return images if found is None else found


def _edit(image: Tensor | None, strength: float, mask: Tensor | None) -> ImageEdit | None:
    if image is None:
        if mask is not None or strength != 1:
            raise UserError("strength and mask belong to an image: give one, or leave them out")
        return None
    return ImageEdit(
        from_bytes(image), strength, None if mask is None else mask.to(torch.float32)[None]
    )


def load(
    where: str | Path,
    *,
    system: str | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
) -> System:
    """A system of a pipeline's run, or the diffusion model of a training run or model directory.

    Args:
        where: The run or model directory; a model directory can also be a URL.
        system: One of a pipeline's systems; its cascade, or its first one, if None.
        device: `cpu`, `cuda` or `cuda:N`; None is the first GPU if there is one, else the CPU.
        precision: `auto` is bf16 autocast where the device multiplies bf16 matrices, else fp32.

    Raises:
        UserError: nothing that generates images is there, or a model cannot be read.
    """
    config = find_system(str(where), system)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return System(load_generator(config, device=place, precision=precision))


def open_dataset(
    url: str | Path,
    *,
    image_size: int | None = None,
    split: str | None = None,
    part: str = "train",
) -> Dataset:
    """A shard set, with its images at `image_size` if that is given.

    Args:
        url: A directory or an fsspec URL.
        image_size: Side of the images in pixels; they are padded to white squares.
        split: One of the set's splits, of which `part` is `train` or `test`; None is the whole set.
        part: See `split`.

    Raises:
        UserError: the set cannot be read, or has no such split.
    """
    tree: dict[str, object] = {"url": str(url)}
    if image_size is not None:
        tree["image"] = ImageConfig(size=image_size)
    try:
        if split is not None:
            tree["select"] = (Selection.model_validate({"split": split, "part": part}),)
        return open_configured(DataConfig.model_validate(tree))
    except ValidationError as error:
        raise UserError(explain(error, "open_dataset", tree)) from error


def train(
    recipe: str | Path,
    overrides: Mapping[str, object] | None = None,
    *,
    runs: str | Path = "runs",
) -> Path:
    """Train a recipe in processes of its own, one per GPU; returns the model directory.

    The same call resumes an interrupted run, and returns at once if it is finished. `overrides`
    are dotted settings, like `{"optimizer.lr.peak": 1e-4}`.

    Raises:
        UserError: an unreadable recipe, an impossible setting, or a failed run.
    """
    settings = [f"{key}={value}" for key, value in (overrides or {}).items()]
    run = RunDirectory(Path(runs) / load_recipe(str(recipe), settings).name)
    command = [sys.executable, "-P", "-m", "launch.cli.main", "train", str(recipe), *settings]
    done = subprocess.run([*command, "--runs", str(runs)], check=False)
    if done.returncode:
        raise UserError(
            f"{run.path}: training ended with exit code {done.returncode}; its messages are on the "
            "standard error of this process"
        )
    return run.model


def evaluate(
    config: str | Path | Mapping[str, object],
    out: str | Path,
    *,
    device: str | torch.device | None = None,
) -> EvaluationResult:
    """Run an evaluation, a YAML file or its settings; writes results and image grids into `out`.

    Raises:
        UserError: an unknown setting, or something that is read is missing or does not fit.
    """
    is_file = isinstance(config, str | Path)
    tree = read_tree(config) if isinstance(config, str | Path) else dict(config)
    settings = validate(EVALUATION.validate_python, tree, str(config) if is_file else "evaluation")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return run_evaluation(settings, out, device=place)
