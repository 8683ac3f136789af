"""`mezzotint edit imagic`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.cli.options import (
    AsJson,
    Device,
    ForcePreprocessing,
    ImageFilter,
    ImageFit,
    ImageOut,
    Processes,
)

Where = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A pipeline's run, a training run or a model directory."),
]
EmbeddingSteps = Annotated[
    int | None, typer.Option(help="Steps that optimise the embedding.", min=0)
]
EmbeddingRate = Annotated[float | None, typer.Option(help="Their learning rate.", min=0)]
Steps = Annotated[int | None, typer.Option(help="Steps that fine-tune the diffusion model.", min=0)]
Rate = Annotated[float | None, typer.Option("--lr", help="Their learning rate.", min=0)]
UpsamplerSteps = Annotated[
    int | None,
    typer.Option(help="Steps that fine-tune each super-resolution model; 0: none.", min=0),
]
UpsamplerRate = Annotated[float | None, typer.Option(help="Their learning rate.", min=0)]
Rank = Annotated[
    int | None,
    typer.Option(help="Train low-rank adapters of this rank instead of all weights.", min=1),
]
TrainBatch = Annotated[
    int | None, typer.Option(help="Times and noises of the image in a training step.", min=1)
]
Etas = Annotated[
    str | None,
    typer.Option(help="Between the optimised embedding (0) and the target's (1): 0,0.5,0.8,1."),
]
Work = Annotated[
    Path | None,
    typer.Option(help="Where trained parts are kept; beside the strip by default."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the sampling, like guidance=2 or steps=25."),
]
ClipModel = Annotated[
    str | None, typer.Option(help="A CLIP model that scores; that of the pipeline by default.")
]
Vgg = Annotated[str | None, typer.Option(help="VGG-16's weights, for distances in its features.")]
Lpips = Annotated[str | None, typer.Option(help="LPIPS' weights of VGG-16's features.")]


EXAMPLES = (
    "Examples:  [bold]mezzotint edit imagic runs/quickstart face.png 'woman firefighter: "
    "dark skin tone'[/]  ·  [bold]mezzotint edit imagic runs/emoji_latent face.png 'man pilot' "
    "--clip runs/clip/model --rank 4 --etas 0.5,0.6,0.7,0.8 --number 3[/]"
)


def imagic(
    where: Where,
    image: Annotated[Path, typer.Argument(help="The image file that is edited.")],
    target: Annotated[str, typer.Argument(help="What the edited image shows.")],
    out: ImageOut = Path("imagic.png"),
    system: Annotated[str | None, typer.Option(help="A pipeline's evaluate stage.")] = None,
    etas: Etas = None,
    number: Annotated[int, typer.Option(help="Images for each eta.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of training and samples.", min=0)] = 0,
    embedding_steps: EmbeddingSteps = None,
    embedding_lr: EmbeddingRate = None,
    steps: Steps = None,
    learning_rate: Rate = None,
    upsampler_steps: UpsamplerSteps = None,
    upsampler_lr: UpsamplerRate = None,
    rank: Rank = None,
    train_batch: TrainBatch = None,
    work: Work = None,
    others: Set = None,
    clip: ClipModel = None,
    vgg: Vgg = None,
    lpips: Lpips = None,
    batch: Annotated[int, typer.Option(help="Images generated together.", min=1)] = 32,
    processes: Processes = None,
    device: Device = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="auto: bf16 where the device has it.")
    ] = "auto",
    *,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Change a real image by a target text (Imagic); the same command resumes it."""
    from launch.edit.imagic import ImagicOptions, edit_image
    from launch.edit.imagic_options import parse_etas, training
    from launch.sampling.overrides import parse_overrides
    from mezzotint.common.preprocessing import StatedPreprocessing

    config = training(
        embedding=(embedding_steps, embedding_lr), network=(steps, learning_rate),
        upsampler=(upsampler_steps, upsampler_lr), rank=rank, batch=train_batch, seed=seed,
    )  # fmt: skip
    options = ImagicOptions(
        image=image, target=target, out=out, work=work or out.with_suffix(".imagic"),
        config=config, etas=parse_etas(etas), number=number, seed=seed, batch=batch,
        system=system, overrides=parse_overrides({}, others or ()), clip=clip, vgg=vgg,
        lpips=lpips, device=device, processes=processes, precision=precision,
        preprocessing=StatedPreprocessing.of_options(
            image_fit, image_filter, force=force_preprocessing
        ),
        show_progress=not as_json,
    )  # fmt: skip
    if (report := edit_image(where, options)) is not None:
        typer.echo(report.to_json() if as_json else report.to_text())
