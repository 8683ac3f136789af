"""`mezzotint sample`, `invert` and `likelihood`: images, their noise and their density."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.cli import control_options
from launch.cli.options import (
    AsJson,
    Device,
    ForcePreprocessing,
    ImageFilter,
    ImageFit,
    ImageOut,
    Processes,
)

sampling_app = typer.Typer()

Where = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A pipeline's run directory, a training run or a model directory (also s3://).",
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help="A class, by name or number; again for another."),
]
System = Annotated[
    str | None, typer.Option(help="A pipeline's evaluate stage; cascade by default.")
]
Candidates = Annotated[
    int | None,
    typer.Option(help="Images a prior generates per caption, of which the best are shown.", min=1),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Guidance scale, 1 is none; the pipeline's by default.", min=0),
]
Solver = Annotated[
    str | None, typer.Option(help="ddim, ddpm, heun, dpm_solver_pp_2m, unipc and others.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any other setting: times=karras, eta=1, rescale=0.7, thresholding=dynamic, and of "
        "super-resolution level=0.02, upsampler-steps=12, of one model level.0=0.02.",
    ),
]
Classifier = Annotated[
    str | None, typer.Option(help="A noisy classifier's run, which guides to --class.")
]
ClassifierScale = Annotated[
    float | None, typer.Option(help="Scale of classifier guidance; 1 by default.", min=0)
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(help="One or two settings, 'guidance=1,2,4 steps=10,25': a labelled grid."),
]
TrajectoryFile = Annotated[
    Path | None, typer.Option(help="The steps of the first images: a .png strip or a .gif.")
]
FromNoise = Annotated[
    Path | None, typer.Option(help="Start from a noise file of `mezzotint invert`.")
]
StartImage = Annotated[
    Path | None,
    typer.Option("--image", help="An image to start from; needs --strength or --mask."),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="How much of --image changes: the part of the steps that are taken, up to 1.",
        min=0,
        max=1,
    ),
]
Mask = Annotated[
    Path | None, typer.Option(help="An image: --image is repainted where this one is white.")
]
FirstStage = Annotated[
    str | None,
    typer.Option(help="Where a latent model's first stage is now, if not where it was."),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="auto: fp32 for priors over codes, else bf16 where the device has it."),
]
Batch = Annotated[int, typer.Option(help="Images generated together.", min=1)]
DataSet = Annotated[
    str | None, typer.Option("--data", help="A set to estimate analytic_dpm's variances on.")
]
Model = Annotated[
    str, typer.Argument(help="A training run or a model directory (also s3://) of one model.")
]
Start = Annotated[
    float,
    typer.Option(
        help="Timestep at which images are taken as noisy ones; later for a less exact network.",
        min=0,
        max=0.9,
    ),
]


@sampling_app.command(
    epilog='Examples:  [bold]mezzotint sample runs/quickstart "woman firefighter: dark skin tone"'
    "[/]  ·  [bold]mezzotint sample runs/quickstart --system dalle --candidates 64 --processes 2 "
    "'man pilot'[/]  ·  [bold]mezzotint sample runs/emoji_base 'man pilot' --solver "
    "dpm_solver_pp_2m --steps 12 --trajectory steps.gif[/]  ·  [bold]mezzotint sample "
    "runs/emoji_base 'man pilot' --sweep 'guidance=1,2,4 steps=5,10,25'[/]  ·  "
    "[bold]mezzotint sample runs/emoji_class --class food-drink --guidance 3[/]  ·  "
    "[bold]mezzotint sample runs/emoji_latent 'man pilot' --image photo.png --mask mask.png[/]"
    "  ·  [bold]mezzotint sample runs/edge_control 'man pilot' --control edges.png "
    "--control-scale 0.8[/]"
)
def sample(
    where: Where,
    captions: Annotated[list[str] | None, typer.Argument(help="What the images show.")] = None,
    out: ImageOut = Path("sample.png"),
    classes: Classes = None,
    system: System = None,
    number: Annotated[int, typer.Option(help="Images shown per prompt.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Same seed, same images.", min=0)] = 0,
    guidance: Guidance = None,
    solver: Solver = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.", min=1)] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt of guidance.")] = None,
    others: Set = None,
    classifier: Classifier = None,
    classifier_scale: ClassifierScale = None,
    sweep: Sweep = None,
    trajectory: TrajectoryFile = None,
    from_noise: FromNoise = None,
    image: StartImage = None,
    strength: Strength = None,
    mask: Mask = None,
    first_stage: FirstStage = None,
    control: control_options.Hints = None,
    control_model: control_options.Models = None,
    control_scale: control_options.Scales = None,
    control_interval: control_options.Intervals = None,
    guess_mode: control_options.GuessModes = "off",
    data: DataSet = None,
    candidates: Candidates = None,
    processes: Processes = None,
    batch: Batch = 32,
    device: Device = None,
    precision: Precision = "auto",
    *,
    detect: control_options.Detect = False,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Generate images with a trained pipeline or model, as one labelled grid."""
    from launch.sampling.overrides import parse_overrides
    from launch.sampling.plan import SampleOptions
    from launch.sampling.sample import sample as generate
    from mezzotint.common.preprocessing import StatedPreprocessing

    stated = StatedPreprocessing.of_options(image_fit, image_filter, force=force_preprocessing)
    named = {"guidance": guidance, "solver": solver, "steps": steps, "negative": negative}
    named |= {"classifier-scale": classifier_scale, "first-stage": first_stage}
    options = SampleOptions(
        captions=tuple(captions or ()), classes=tuple(classes or ()), system=system,
        number=number, seed=seed, batch=batch, candidates=candidates, classifier=classifier,
        overrides=parse_overrides(named, others or ()), sweep=tuple(sweep or ()),
        trajectory=trajectory, noise=from_noise, image=image, strength=strength, mask=mask,
        controls=control_options.stated(control, control_model, control_scale, control_interval,
                                        guess_mode, detect=detect),
        data=data, device=device, processes=processes, precision=precision, preprocessing=stated,
        show_progress=not as_json)  # fmt: skip
    if (report := generate(where, out, options)) is not None:
        typer.echo(report.to_json() if as_json else report.to_text())


@sampling_app.command(
    epilog="Examples:  [bold]mezzotint invert runs/emoji_base face.png --caption 'man pilot'[/]"
    "  ·  [bold]mezzotint sample runs/emoji_base 'woman pilot' --from-noise "
    "inverted.safetensors[/]"
)
def invert(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    caption: Annotated[
        list[str] | None, typer.Option(help="What they show: once for all, or once each.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Their class, by name or number.")
    ] = None,
    steps: Annotated[str, typer.Option(help="Numbers of steps to compare.")] = "10,25,50,100",
    times: Annotated[str, typer.Option(help="Time grid.")] = "log_snr",
    start: Start = 0.02,
    out: ImageOut = Path("inverted.png"),
    noise: Annotated[
        Path | None, typer.Option(help="Where the noise goes; beside the grid by default.")
    ] = None,
    device: Device = None,
    processes: Processes = None,
    *,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Find the noise from which DDIM generates images, and report how well it does."""
    from launch.sampling.invert import InvertOptions, parse_steps
    from launch.sampling.invert import invert as invert_images
    from mezzotint.common.preprocessing import StatedPreprocessing

    options = InvertOptions(
        captions=tuple(caption or ()),
        classes=tuple(classes or ()),
        steps=parse_steps(steps),
        times=times,
        start=start,
        out=out,
        noise=noise or out.with_suffix(".safetensors"),
        device=device,
        processes=processes,
        show_progress=not as_json,
        preprocessing=StatedPreprocessing.of_options(
            image_fit, image_filter, force=force_preprocessing
        ),
    )
    report = invert_images(model, images, options)
    if report is not None:
        typer.echo(report.to_json() if as_json else report.to_text())


@sampling_app.command(
    epilog="Example:  [bold]mezzotint likelihood runs/emoji_base data/emoji --split composition "
    "--limit 64[/]"
)
def likelihood(
    model: Model,
    data: Annotated[str, typer.Argument(help="A set of images.")],
    split: Annotated[
        str | None, typer.Option(help="NAME (its test part) or NAME/train; all by default.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Images, chosen by the seed.", min=2)] = 64,
    steps: Annotated[int, typer.Option(help="Heun steps.", min=2)] = 64,
    start: Start = 0.02,
    probes: Annotated[int, typer.Option(help="Random vectors of the estimate.", min=1)] = 1,
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of choice, dequantisation and probes.", min=0)] = 0,
    device: Device = None,
    processes: Processes = None,
    *,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Bits per dimension of a set's images, by the probability-flow ODE, with an interval."""
    from evaluation.metrics.likelihood import Integration
    from launch.sampling.likelihood import LikelihoodOptions, evaluate_likelihood
    from mezzotint.common.preprocessing import StatedPreprocessing

    options = LikelihoodOptions(
        url=data,
        split=split,
        limit=limit,
        integration=Integration(steps, start, probes, seed, batch),
        device=device,
        processes=processes,
        show_progress=not as_json,
        preprocessing=StatedPreprocessing.of_options(
            image_fit, image_filter, force=force_preprocessing
        ),
    )
    result = evaluate_likelihood(model, options)
    if result is not None:
        typer.echo(result.to_json() if as_json else result.to_text())
