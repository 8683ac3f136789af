"""The models of a system, read once, that draw the same subjects under changing settings."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from launch.sampling.inputs import Pictures
from launch.sampling.parallel import Request, draw_candidates, ranks
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.build import CascadeDrawer, build_system
from mezzotint.inference.config import (
    CascadeSystem,
    DalleSystem,
    DiffusionSystem,
    HierarchySystem,
    SystemConfig,
)
from mezzotint.inference.diffusion import DiffusionDrawer, Wish
from mezzotint.inference.generator import Drawn, System
from mezzotint.inference.images import to_bytes
from mezzotint.inference.vqvae2 import HierarchyDrawer
from models.diffusion.sampling import NFE
from models.diffusion.solvers.config import AnalyticDPMConfig
from models.systems.diffusion import SamplerStep, StepCallback

Tell = Callable[[int, int], None]
"""Called with what is done and its total."""


Data = Callable[[int], Pictures]
"""Pictures of a size."""


@dataclass(frozen=True)
class Subject:
    """What a row of pictures shows, and what a sheet calls it."""

    title: str
    caption: str | None = None
    label: int | None = None


@dataclass(frozen=True)
class Order:
    """What is to be drawn."""

    subjects: tuple[Subject, ...]
    number: int
    """Pictures of each subject."""
    seed: int
    batch: int = 32
    """Pictures a diffusion model draws together."""
    candidates: int | None = None
    """Pictures a dalle system chooses among; its own number where None."""
    processes: int | None = None
    noise: Tensor | None = None
    """(number, 3, H, W): where a diffusion model starts from, instead of noise of the seeds."""

    @property
    def captions(self) -> tuple[str, ...]:
        """For systems that read nothing else."""
        return tuple(subject.caption or "" for subject in self.subjects)

    @property
    def seeds(self) -> range:
        """One for each of a subject's pictures."""
        return range(self.seed, self.seed + self.number)


@dataclass(frozen=True)
class Shown:
    """What was drawn, and what it cost."""

    pictures: Tensor
    """(subjects, number, H, W, 3) uint8."""
    words: str
    """Where they come from: seeds, or how many they are the best of."""
    calls: NFE | None
    """Of networks, for each picture; None where a system does not count them."""
    seconds: float


class Easel(Protocol):
    """Draws with the models of one system."""

    def draw(
        self, config: SystemConfig, order: Order, tell: Tell, watch: StepCallback | None = None
    ) -> Shown:
        """Pictures under a configuration of the same models; `watch` sees the first ones form."""
        ...


def easel_of(config: SystemConfig, name: str, data: Data | None = None) -> Easel:
    """The easel for a kind of system; `name` is what errors call it.

    `data` gives pictures of a size for Analytic-DPM's variances.
    """
    match config:
        case DalleSystem():
            return DalleEasel(name)
        case DiffusionSystem():
            return DiffusionEasel(DiffusionDrawer.load(config, "auto"), data)
        case _:
            return CaptionEasel(build_system(config))


@dataclass(frozen=True)
class DiffusionEasel:
    """One diffusion model."""

    drawer: DiffusionDrawer
    data: Data | None = None

    def draw(
        self, config: SystemConfig, order: Order, tell: Tell, watch: StepCallback | None = None
    ) -> Shown:
        """Batches of pictures, all subjects of one seed after all of another."""
        assert isinstance(config, DiffusionSystem)
        drawer, start = self._under(config, order), time.monotonic()
        wishes = [
            Wish(seed, subject.caption, subject.label)
            for seed in order.seeds
            for subject in order.subjects
        ]
        count = len(order.subjects)
        noise = None if order.noise is None else order.noise.repeat_interleave(count, dim=0)
        steps = config.sampling.steps
        blocks = range(0, len(wishes), order.batch)
        pictures, calls = [], NFE()
        for place, first in enumerate(blocks):

            def look(moment: SamplerStep, place: int = place) -> None:
                tell(place * steps + moment.done, len(blocks) * steps)
                if watch is not None and place == 0:
                    watch(moment)

            block = slice(first, first + order.batch)
            painted = drawer.paint(wishes[block], None if noise is None else noise[block], look)
            pictures.append(painted.pictures)
            calls = painted.calls
        every = torch.cat(pictures)
        shown = every.view(order.number, count, *every.shape[1:]).transpose(0, 1)
        words = "from noise given" if noise is not None else seeds_in_words(order)
        return Shown(shown, words, calls, time.monotonic() - start)

    def _under(self, config: DiffusionSystem, order: Order) -> DiffusionDrawer:
        """The same model under another configuration, with moments where it needs some."""
        drawer, solver = replace(self.drawer, config=config), config.sampling.solver
        if not isinstance(solver, AnalyticDPMConfig) or solver.moments is not None:
            return drawer
        if self.data is None:
            raise UserError(
                "--solver analytic_dpm: its variances are estimated on pictures; give --data SET"
            )
        pictures = self.data(drawer.image_size)
        told = drawer.captions is not None
        captions = pictures.captions if told else (None,) * len(pictures.images)
        wishes = [Wish(order.seed, caption) for caption in captions]
        rng = keyed_generator(order.seed, "moments")
        sampling = drawer.diffusion.moments(
            pictures.images, drawer.condition(wishes), rng, config.sampling
        )
        return replace(drawer, config=config.model_copy(update={"sampling": sampling}))


@dataclass(frozen=True)
class CaptionEasel:
    """Any system that draws one picture of each caption after the other."""

    system: System

    def draw(
        self, config: SystemConfig, order: Order, tell: Tell, watch: StepCallback | None = None
    ) -> Shown:
        """All captions of one seed, then of the next."""
        system, start = under(self.system, config), time.monotonic()
        rounds, calls = [], None
        for place, seed in enumerate(order.seeds):
            drawn = system.draw(order.captions, seed)
            rounds.append(best(drawn))
            calls = drawn.calls
            tell(place + 1, order.number)
        return Shown(
            torch.stack(rounds, dim=1), seeds_in_words(order), calls, time.monotonic() - start
        )


@dataclass(frozen=True)
class DalleEasel:
    """A prior over codes: many candidates, of which the best are shown."""

    name: str

    def draw(
        self, config: SystemConfig, order: Order, tell: Tell, watch: StepCallback | None = None
    ) -> Shown:
        """The best candidates of each caption, best first."""
        assert isinstance(config, DalleSystem)
        start = time.monotonic()
        count = max(order.candidates or config.candidates, order.number)
        if order.candidates is not None and config.ranker is None and count > order.number:
            raise UserError(
                f"--candidates {order.candidates}: {self.name} has no ranker to choose among "
                "them; set its ranker in the pipeline, or leave the option out"
            )
        request = Request(config, order.captions, count, order.seed)
        samples = draw_candidates(request, order.processes or 1, tell)
        chosen = f"best of {count}" if config.ranker is not None else "as drawn"
        pictures = to_bytes(samples.best_of(order.number))
        return Shown(pictures, f"{chosen}, seed {order.seed}", None, time.monotonic() - start)


def under(system: System, config: SystemConfig) -> System:
    """The same models under another configuration."""
    match system, config:
        case CascadeDrawer(), CascadeSystem():
            return replace(system, config=config)
        case HierarchyDrawer(), HierarchySystem():
            return replace(system, config=config)
    return system


def refuse_candidates(config: SystemConfig, order: Order, name: str) -> None:
    """Options that belong to systems of kind dalle.

    Raises:
        UserError: one is set.
    """
    for option, value in (
        ("candidates", order.candidates),
        ("processes", order.processes),
        ("ranks", ranks().size if ranks().size > 1 else None),
    ):
        if value is not None:
            raise UserError(
                f"{option} {value}: {name} is a {config.kind}, which draws one picture "
                "after the other; systems of kind dalle draw candidates, by several processes"
            )


def seeds_in_words(order: Order) -> str:
    """For titles."""
    if order.number == 1:
        return f"seed {order.seed}"
    return f"seeds {order.seed} to {order.seeds[-1]}"


def best(drawn: Drawn) -> Tensor:
    """The best candidate of each caption, or the only one."""
    if drawn.scores is None:
        return drawn.pictures[:, 0]
    return drawn.pictures[torch.arange(len(drawn.pictures)), drawn.scores.argmax(dim=1)]
