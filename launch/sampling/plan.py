"""`mezzotint sample`: its options, resolved to a request and the settings of each cell."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from torch import Tensor

from data_pipeline.config import ImageConfig
from launch.sampling.controls import NO_CONTROLS, ControlOptions, read_hints, with_controls
from launch.sampling.inputs import images_of_files, read_mask
from launch.sampling.noise_file import NoiseFile, read_noise
from launch.sampling.overrides import Overrides, Value, parse_sweep, with_overrides
from launch.sampling.trajectory import check_format
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing
from mezzotint.inference.config import (
    DalleSystem,
    DenoiserSystem,
    DiffusionSystem,
    HierarchySystem,
    LatentSystem,
    SystemConfig,
)
from mezzotint.inference.editing import ImageEdit
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.latent_space import recorded_first_stage
from mezzotint.inference.model_lookup import (
    TrainedModel,
    default_system,
    find_model,
    find_system,
    is_pipeline,
)
from mezzotint.inference.preprocessing import image_config
from mezzotint.inference.runtime import Precision
from models import store
from models.config import image_side


@dataclass(frozen=True)
class SampleOptions:
    """What is generated and how."""

    captions: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    """Names or numbers."""
    system: str | None = None
    """Of a pipeline; its cascade, or its first system, where None."""
    number: int = 4
    """Images shown per prompt."""
    seed: int = 0
    batch: int = 32
    candidates: int | None = None
    """Images generated per prompt to rank; the system's own number where None."""
    overrides: Overrides = field(default_factory=dict)
    classifier: str | None = None
    """A run or a model directory of a noisy classifier."""
    sweep: tuple[str, ...] = ()
    trajectory: Path | None = None
    image: Path | None = None
    """An image to start from."""
    strength: float | None = None
    mask: Path | None = None
    """An image that is white where `image` is repainted."""
    controls: ControlOptions = NO_CONTROLS
    noise: Path | None = None
    """A file of `mezzotint invert`."""
    data: str | None = None
    """A set on whose images the moments of Analytic-DPM are estimated."""
    device: str | None = None
    processes: int | None = None
    show_progress: bool = True
    precision: Precision = "auto"
    preprocessing: StatedPreprocessing = MODELS_OWN
    """Of the images of `data`; forced, also for models of a system that were trained on other."""


@dataclass(frozen=True)
class SamplePlan:
    """Options, resolved: one request under the settings of each cell of a sweep."""

    options: SampleOptions
    name: str
    axes: Mapping[str, tuple[Value, ...]]
    settings: tuple[Overrides, ...]
    configs: tuple[SystemConfig, ...]
    titles: tuple[str, ...]
    """What the grid calls each prompt."""
    number: int
    """Images shown per prompt."""
    request: GenerationRequest
    source: str
    """Where the images come from: the seed, or how many they are the best of."""


def plan_sampling(where: str, options: SampleOptions) -> SamplePlan:
    """Everything that can be checked before models are loaded."""
    axes = parse_sweep(options.sweep)
    check_options(options, axes)
    name, config, model = resolve_system(where, options)
    number = generated_number(name, config, options)
    overrides, noise = dict(options.overrides), None
    if options.noise is not None:
        made = read_own_noise(options.noise, config)
        number, noise = len(made.noise), made.noise
        # noise is sampled from as it was made, unless an option says otherwise
        steps: dict[str, Value] = {"steps": made.steps, "times": made.times}
        overrides = {key: each for key, each in steps.items() if key not in axes} | overrides
    config = with_controls(with_overrides(config, overrides), options.controls)
    if options.preprocessing.force:
        config = config.model_copy(update={"force_preprocessing": True})
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    prompts = prompts_of(options, model)
    check_conditions(config, options)
    ranked = isinstance(config, DalleSystem | HierarchySystem) and config.ranker is not None
    source = f"best of {number}, seed {options.seed}" if ranked else f"seed {options.seed}"
    return SamplePlan(
        options=options,
        name=name,
        axes=axes,
        settings=tuple(combinations),
        configs=tuple(with_overrides(config, each, "--sweep") for each in combinations),
        titles=tuple(prompts),
        number=options.number if noise is None else number,
        request=GenerationRequest(
            prompts=tuple(prompts.values()),
            number=number,
            seed=options.seed,
            batch_size=options.batch,
            noise=noise,
            edit=edit_of(options, config),
            hints=hints_of(options, config),
        ),
        source=source if noise is None else "from given noise",
    )


def check_options(options: SampleOptions, axes: Mapping[str, tuple[Value, ...]]) -> None:
    """Refuse options that do not go together, whatever the system.

    Raises:
        UserError: they do not.
    """
    if options.trajectory is not None:
        check_format(options.trajectory)
        if axes:
            raise UserError("--trajectory: shows one run; leave out --sweep")
    prepares = options.data is not None or options.image is not None or options.controls.detect
    if options.preprocessing.values and not prepares:
        name = next(iter(options.preprocessing.values))
        raise UserError(
            f"--image-{name}: prepares the images of --data and --image, and of --control with "
            "--detect; leave it out, or add one"
        )


def resolve_system(
    where: str, options: SampleOptions
) -> tuple[str, SystemConfig, TrainedModel | None]:
    """Name and configuration of a system, and its model if it is a single one."""
    config = find_system(where, options.system)
    if not isinstance(config, DenoiserSystem) or is_pipeline(where):
        if options.classifier is not None:
            raise UserError("--classifier: guides a single diffusion model; give its run")
        if not is_pipeline(where):
            return find_model(where).name, config, None
        name = options.system or default_system(Path(where))
        return name, config, None
    model = find_model(where)
    if options.classifier is not None:
        classifier = find_model(options.classifier)
        if not isinstance(config, DiffusionSystem):
            raise UserError(
                "--classifier: guides a diffusion model of pixels; this one generates latents"
            )
        config = DiffusionSystem(model=config.model, classifier=classifier.directory)
        model = model if model.classes else replace(model, labels=classifier.labels)
        return model.name, with_overrides(config, {"classifier-scale": 1.0}), model
    return model.name, config, model


def hints_of(options: SampleOptions, config: SystemConfig) -> tuple[Tensor, ...]:
    """The hints of the options, one for each control."""
    if not isinstance(config, DenoiserSystem) or not config.controls:
        return ()
    return read_hints(config, options.controls, system_images(config, options.preprocessing))


def edit_of(options: SampleOptions, config: SystemConfig) -> ImageEdit | None:
    """The image of the options, prepared as the system's training images were.

    Raises:
        UserError: a mask or strength without an image, a system that takes none, or no image file.
    """
    if options.image is None:
        for option, value in (("strength", options.strength), ("mask", options.mask)):
            if value is not None:
                raise UserError(f"--{option}: belongs to --image; add one, or leave it out")
        return None
    if not isinstance(config, DenoiserSystem):
        raise UserError("--image: only a single diffusion model starts from an image; give its run")
    if options.mask is None and options.strength is None:
        raise UserError("--image: say how much of it changes by --strength, or where by --mask")
    image = system_images(config, options.preprocessing)
    return ImageEdit(
        image=images_of_files([options.image], image).images[0],
        strength=1.0 if options.strength is None else options.strength,
        mask=None if options.mask is None else read_mask(options.mask, image),
    )


def system_images(config: DenoiserSystem, stated: StatedPreprocessing) -> ImageConfig:
    """How the images of a diffusion model are prepared."""
    where = config.model
    if isinstance(config, LatentSystem):
        where = config.first_stage or recorded_first_stage(config.model).model
    side = image_side(store.describe(where).config)
    if side is None:
        raise UserError(f"{where}: is no model of images")
    return image_config(where, side, stated)


def generated_number(name: str, config: SystemConfig, options: SampleOptions) -> int:
    """Images generated per prompt, of which the best are shown.

    Raises:
        UserError: candidates for a system that does not rank any.
    """
    if not isinstance(config, DalleSystem | HierarchySystem):
        if options.candidates is not None:
            raise UserError(
                f"--candidates {options.candidates}: {name} is a {config.kind}; only systems with "
                "a prior over codes rank candidates"
            )
        return options.number
    if options.candidates is not None and config.ranker is None:
        raise UserError(
            f"--candidates {options.candidates}: {name} has no ranker to choose among them; set "
            "its ranker in the pipeline, or leave the option out"
        )
    return max(options.candidates or config.candidates, options.number)


def read_own_noise(path: Path, config: SystemConfig) -> NoiseFile:
    """Noise to start from, which must be of the same model."""
    if not isinstance(config, DenoiserSystem):
        raise UserError("--from-noise: only a diffusion model starts from noise; give its run")
    noise = read_noise(path)
    if noise.digest != store.describe(config.model).digest:
        raise UserError(f"--from-noise {path}: is noise of another model than {config.model}")
    return noise


def prompts_of(options: SampleOptions, model: TrainedModel | None) -> dict[str, Prompt]:
    """Every caption with every class, by title."""
    labels: list[int | None] = [None]
    if options.classes:
        if model is None:
            raise UserError("--class: conditions a single model; give its run or directory")
        labels = [model.label(name) for name in options.classes]
    prompts = {}
    for caption, label in product(options.captions or (None,), labels):
        words = [] if caption is None else [caption]
        if label is not None and model is not None:
            words.append(model.class_name(label))
        prompts[", ".join(words) or "unconditional"] = Prompt(caption, label)
    return prompts


def check_conditions(config: SystemConfig, options: SampleOptions) -> None:
    """Refuse what only a single diffusion model takes.

    Raises:
        UserError: no caption, or a trajectory of several models.
    """
    if isinstance(config, DenoiserSystem):
        return
    if not options.captions:
        raise UserError(f"captions: a {config.kind} generates from captions; give some")
    if options.trajectory is not None:
        raise UserError(
            f"--trajectory: a {config.kind} is several models; give the run of one diffusion model"
        )
