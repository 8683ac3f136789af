"""`mezzotint sample`: pictures by a trained system or model, on one labelled sheet or grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from launch.progress import Reporter
from launch.sampling.image_grid import Cell, Drawn, grid, plain_sheet
from launch.sampling.inputs import Pictures, pictures_of_set
from launch.sampling.model_lookup import Target, default_system, is_pipeline, system_of, target_of
from launch.sampling.noise_file import NoiseFile, read_noise
from launch.sampling.overrides import Settings, Value, changed, sweep_of
from launch.sampling.parallel import ranks
from launch.sampling.sampler import Data, Easel, Order, Subject, easel_of, refuse_candidates
from launch.sampling.trajectory import Film, check_format
from mezzotint.common.errors import UserError
from mezzotint.inference.config import DalleSystem, DiffusionSystem, SystemConfig
from models import store

FILMED = 4
"""Pictures a film shows at most."""
ESTIMATED = 128
"""Pictures that variances are estimated on."""


@dataclass(frozen=True)
class Drawing:
    """What is drawn and how."""

    captions: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    """Names or numbers."""
    system: str | None = None
    """Of a pipeline; its cascade, or its only one, where None."""
    number: int = 4
    """Pictures shown of each subject."""
    seed: int = 0
    batch: int = 32
    candidates: int | None = None
    """Pictures drawn per caption to choose among; the system's own number where None."""
    processes: int | None = None
    """Local processes that draw candidates; one where None."""
    settings: Settings = field(default_factory=dict)
    classifier: str | None = None
    """A run or a model directory of a noisy classifier."""
    sweep: tuple[str, ...] = ()
    film: Path | None = None
    noise: Path | None = None
    """What `invert` has written."""
    data: str | None = None
    """A set whose pictures Analytic-DPM's variances are estimated on."""
    shows_progress: bool = True


def draw_sheet(where: str, out: Path, drawing: Drawing) -> Drawn | None:
    """Draw, and write one PNG and perhaps a film; None in ranks that do not write.

    Raises:
        UserError: no such run, system, model, class or setting, or options that do not go
            together.
        UserError: the models cannot be read or do not draw what is asked.
    """
    axes = sweep_of(drawing.sweep)
    if drawing.film is not None:
        check_format(drawing.film)
        if axes:
            raise UserError("--film: shows one run; leave out --sweep")
    name, config, target = subject_of(where, drawing)
    noise = None if drawing.noise is None else noise_for(drawing.noise, config)
    drawing = with_noise(drawing, noise, axes)
    config = changed(config, drawing.settings)
    asked = swept(config, axes)
    order = order_of(drawing, target, noise)
    if not isinstance(config, DalleSystem):
        refuse_candidates(config, order, name)
    if not isinstance(config, DiffusionSystem):
        refuse_for_systems(config, drawing)
    easel = easel_of(config, name, None if drawing.data is None else data_of(drawing))
    filmed = min(len(order.subjects), order.batch, FILMED)
    film = None if drawing.film is None else Film(filmed)
    writes = ranks().is_main
    with Reporter(None, shows=writes and drawing.shows_progress) as reporter:
        cells = draw_cells(easel, asked, order, reporter, film)
    if not writes:
        return None
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = grid(name, order, axes, cells) if axes else plain_sheet(name, order, cells[0].shown)
    picture.save(out)
    if film is not None and drawing.film is not None:
        titles = [subject.title for subject in order.subjects]
        film.save(drawing.film, titles, f"{name}, seed {order.seed}, {steps_in_words(config)}")
    return Drawn(out, drawing.film, config, order, tuple(cells))


def steps_in_words(config: SystemConfig) -> str:
    """For the title of a film."""
    assert isinstance(config, DiffusionSystem)
    return f"{config.sampling.steps} steps of {config.sampling.solver.kind}"


def data_of(drawing: Drawing) -> Data:
    """Pictures of a size from the drawing's set."""

    def pictures(size: int) -> Pictures:
        assert drawing.data is not None
        return pictures_of_set(drawing.data, size, limit=ESTIMATED, seed=drawing.seed, split=None)

    return pictures


def subject_of(where: str, drawing: Drawing) -> tuple[str, SystemConfig, Target | None]:
    """The system that is meant, what to call it, and where its model lies if it is a single one."""
    if is_pipeline(where):
        run = Path(where)
        system = drawing.system or default_system(run)
        config: SystemConfig = system_of(run, system)
        if drawing.classifier is None:
            return system, config, None
        raise UserError("--classifier: steers a single diffusion model; give its run or directory")
    if drawing.system is not None:
        raise UserError(f"--system {drawing.system}: {where} is no pipeline's run directory")
    target = target_of(where)
    classifier = None if drawing.classifier is None else target_of(drawing.classifier)
    config = DiffusionSystem(
        model=target.model, classifier=None if classifier is None else classifier.model
    )
    if classifier is not None:
        config = changed(config, {"classifier-scale": 1.0})
        target = replace(target, classes=target.classes or classifier.classes)
    return target.called, config, target


def noise_for(path: Path, config: SystemConfig) -> NoiseFile:
    """Noise to start from, which must be of the same model."""
    if not isinstance(config, DiffusionSystem):
        raise UserError("--from-noise: a single diffusion model draws from noise; give its run")
    noise = read_noise(path)
    if noise.digest != store.describe(config.model).digest:
        raise UserError(f"--from-noise {path}: is noise of another model than {config.model}")
    return noise


def with_noise(
    drawing: Drawing, noise: NoiseFile | None, axes: Mapping[str, Sequence[Value]]
) -> Drawing:
    """What noise was made with is what it is drawn from, unless something else is asked for."""
    if noise is None:
        return drawing
    made: dict[str, Value] = {"steps": noise.steps, "times": noise.times}
    settings = {key: value for key, value in made.items() if key not in axes}
    return replace(drawing, number=len(noise.noise), settings=settings | dict(drawing.settings))


def order_of(drawing: Drawing, target: Target | None, noise: NoiseFile | None) -> Order:
    """What is to be drawn: every caption with every class."""
    labels: list[int | None] = [None]
    if drawing.classes:
        if target is None:
            raise UserError("--class: a single model is told classes; give its run or directory")
        labels = [target.label(name) for name in drawing.classes]
    subjects = []
    for caption, label in product(drawing.captions or (None,), labels):
        words = [] if caption is None else [caption]
        if label is not None and target is not None:
            words.append(target.name(label))
        subjects.append(Subject(", ".join(words) or "nothing in particular", caption, label))
    return Order(
        subjects=tuple(subjects),
        number=drawing.number,
        seed=drawing.seed,
        batch=drawing.batch,
        candidates=drawing.candidates,
        processes=drawing.processes,
        noise=None if noise is None else noise.noise,
    )


def refuse_for_systems(config: SystemConfig, drawing: Drawing) -> None:
    """Options that only a single diffusion model has."""
    if not drawing.captions:
        raise UserError(f"captions: a {config.kind} draws from captions; say what to draw")
    if drawing.film is not None:
        raise UserError(
            f"--film: a {config.kind} is several models; give the run of one diffusion model"
        )


def swept(
    config: SystemConfig, axes: Mapping[str, Sequence[Value]]
) -> list[tuple[Settings, SystemConfig]]:
    """Every combination of swept values, the last setting changing fastest.

    Raises:
        UserError: the system has no such setting, or it cannot have a value.
    """
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [(settings, changed(config, settings, "--sweep")) for settings in combinations]


def draw_cells(
    easel: Easel,
    asked: Sequence[tuple[Settings, SystemConfig]],
    order: Order,
    reporter: Reporter,
    film: Film | None,
) -> list[Cell]:
    """The pictures of every combination of settings."""
    cells = []
    for settings, config in asked:
        words = " ".join(f"{key}={value}" for key, value in settings.items())
        tell = reporter.callback(f"draw {words}".strip())
        cells.append(Cell(settings, easel.draw(config, order, tell, film)))
    return cells
