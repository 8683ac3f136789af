"""A diffusion model by itself, as pictures are asked of it: captions, classes and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.config import DiffusionSystem, Precision
from mezzotint.inference.generator import Drawn
from mezzotint.inference.images import to_bytes
from mezzotint.inference.loading import AutocastPolicy, computes_in_bf16, read_model
from mezzotint.inference.text_conditioning import Captions, captions_of
from models import store
from models.diffusion.classifier import NoisyClassifier
from models.diffusion.condition import Condition
from models.diffusion.sampling import NFE
from models.systems.diffusion import Diffusion, Painter, StepCallback


@dataclass(frozen=True)
class Wish:
    """What one picture should show; nothing in particular where all is None."""

    seed: int
    caption: str | None = None
    label: int | None = None


@dataclass(frozen=True)
class Painted:
    """Pictures (B, H, W, 3) uint8 and the calls of networks that drew them."""

    pictures: Tensor
    calls: NFE


@dataclass(frozen=True)
class DiffusionDrawer:
    """A base, class-conditional or unconditional model, and perhaps a classifier that steers it."""

    config: DiffusionSystem
    diffusion: Diffusion
    captions: Captions | None
    """None: the model is told none."""
    arithmetic: AutocastPolicy
    digests: Mapping[str, str]

    @classmethod
    def load(cls, config: DiffusionSystem, precision: Precision) -> "DiffusionDrawer":
        """Read the model directories of the configuration.

        Raises:
            UserError: no model directory, or one whose model cannot draw by itself.
            UserError: a directory holds another kind of model than the setting asks for, or
                does not say what reads its captions.
        """
        network = store.load(config.model)
        stored = store.describe(config.model)
        if not isinstance(network, Painter):
            raise UserError(
                f"system.model: {config.model} holds a {stored.config.kind}, not a diffusion model "
                "that draws pictures"
            )
        diffusion = Diffusion(network)
        try:
            diffusion.check()
        except UserError as error:
            raise UserError(f"{config.model}: {error}") from error
        digests = {"model": stored.digest}
        if config.classifier is not None:
            diffusion = replace(diffusion, classifier=_classifier(config.classifier, diffusion))
            digests["classifier"] = store.describe(config.classifier).digest
        return cls(
            config=config,
            diffusion=diffusion,
            captions=captions_of(config.model, diffusion.conditioning),
            arithmetic=AutocastPolicy(computes_in_bf16(precision)),
            digests=digests,
        )

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return self.diffusion.network.config.image_size

    def paint(
        self, wishes: Sequence[Wish], noise: Tensor | None = None, watch: StepCallback | None = None
    ) -> Painted:
        """One picture per wish, from the noise (B, 3, H, W) of its seed or from the one given.

        The noise that a solver adds on its way depends on all the seeds drawn together.
        """
        seeds = [wish.seed for wish in wishes]
        start = self.diffusion.noise(seeds) if noise is None else noise
        rng = keyed_generator(seeds[0], "solver", *seeds[1:])
        return self._drawn(self.condition(wishes), start, rng, watch)

    def draw(self, captions: Sequence[str], seed: int) -> Drawn:
        """One picture per caption.

        Raises:
            UserError: the model is told no captions.
        """
        if self.captions is None:
            raise UserError(
                f"system.model: {self.config.model} is told no captions; an evaluation asks for "
                "pictures of captions"
            )
        wishes = [Wish(seed, caption) for caption in captions]
        side = self.image_size
        rng = Generator().manual_seed(seed)
        noise = torch.randn((len(captions), 3, side, side), generator=rng)
        painted = self._drawn(self.condition(wishes), noise, rng, None)
        return Drawn(painted.pictures[:, None], None, painted.calls)

    def condition(self, wishes: Sequence[Wish]) -> Condition:
        """What the model is told, batched.

        Raises:
            UserError: a caption or class for a model that reads none, or no class for one
                that needs one.
        """
        captions = [wish.caption for wish in wishes]
        labels = [wish.label for wish in wishes]
        told = Condition(label=self._labels(labels))
        if self.captions is not None:
            return self.captions(told, [caption or "" for caption in captions])
        if any(caption is not None for caption in captions):
            raise UserError(f"{self.config.model}: is told no captions; leave them out")
        return told

    def _labels(self, labels: Sequence[int | None]) -> Tensor | None:
        told, null = "class" in self.diffusion.conditioning, self.diffusion.null
        count = self.diffusion.classes
        known = [null if label is None else label for label in labels]
        given = [label for label in known if label is not None]
        if told and len(given) < len(labels):
            raise UserError(
                f"{self.config.model}: draws {count} classes and has not learnt to draw without "
                "one: name a class"
            )
        if not given:
            return None
        if count is None:
            raise UserError(f"{self.config.model}: is told no class; leave it out")
        wrong = [label for label in labels if label is not None and not 0 <= label < count]
        if wrong:
            raise UserError(
                f"{self.config.model}: there is no class {wrong[0]}, classes are 0 to {count - 1}"
            )
        return torch.tensor(given)

    def _drawn(
        self, cond: Condition, noise: Tensor, rng: Generator, watch: StepCallback | None
    ) -> Painted:
        negative = None
        if self.config.negative is not None:
            negative = self._away(self.config.negative, cond, len(noise))
        with self.arithmetic():
            samples = self.diffusion.sample(
                cond,
                noise,
                rng,
                sampling=self.config.sampling,
                negative=negative,
                watch=watch,
            )
        return Painted(to_bytes(samples.images), samples.calls)

    def _away(self, caption: str, cond: Condition, count: int) -> Condition:
        """The condition that guidance leads away from."""
        if self.captions is None:
            raise UserError(f"{self.config.model}: is told no captions, so no negative one")
        if self.config.sampling.guidance == 1:
            raise UserError(
                "negative: a negative caption acts through guidance; set a guidance above 1"
            )
        return self.captions(Condition(label=cond.label), [caption] * count)

    def reconstruct(self, pictures: Tensor) -> None:
        """Diffusion can draw any pixels: real images are compared with as they are."""
        return

    def protocol(self) -> Mapping[str, object]:
        """Model and sampling."""
        sampling = self.config.sampling
        return {
            "kind": self.config.kind,
            "digests": dict(self.digests),
            "sampler": sampling.solver.kind,
            "sampling": sampling.model_dump(mode="json"),
            "times": sampling.time_grid.kind,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "negative": self.config.negative,
            "captions": None if self.captions is None else self.captions.protocol(),
            "precision": self.arithmetic.name,
        }


def _classifier(directory: str, diffusion: Diffusion) -> NoisyClassifier:
    """The noisy classifier of a directory, which must fit the model it steers.

    Raises:
        UserError: another kind of model, or one for pictures or classes of other numbers.
    """
    classifier = read_model(directory, NoisyClassifier, "classifier")
    side, classes = diffusion.network.config.image_size, diffusion.classes
    if classifier.config.image_size != side:
        raise UserError(
            f"system.classifier: {directory} reads pictures of {classifier.config.image_size} "
            f"pixels, but system.model draws {side}"
        )
    if classes not in (None, classifier.classes):
        raise UserError(
            f"system.classifier: {directory} tells {classifier.classes} classes apart, but "
            f"system.model draws {classes}"
        )
    return classifier
