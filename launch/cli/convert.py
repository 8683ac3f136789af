"""`mezzotint import` and `export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

export_app = typer.Typer()
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class SourceFormat(StrEnum):
    """Code whose weights are read."""

    guided_diffusion = "guided_diffusion"
    diffusers = "diffusers"
    dit = "dit"
    taming = "taming"


class TargetFormat(StrEnum):
    """Code for which weights are written."""

    guided_diffusion = "guided_diffusion"
    diffusers = "diffusers"
    dit = "dit"


@export_app.command(
    "import",
    epilog="Examples:  [bold]mezzotint import 256x256_diffusion.safetensors runs/adm --from "
    "guided_diffusion --recipe recipes/adm_256.yaml[/]  ·  [bold]mezzotint import "
    "ddpm-cifar10-32 runs/ddpm --from diffusers[/]  ·  [bold]mezzotint import "
    "sd/unet runs/sd --from diffusers model.process.prediction_type=v[/]",
)
def import_(
    file: Annotated[
        Path, typer.Argument(help="A .safetensors file, or the directory diffusers keeps it in.")
    ],
    out: Annotated[str, typer.Argument(help="The model directory to write, a path or URL.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings, like model.depth=3."),
    ] = None,
    source: Annotated[
        SourceFormat, typer.Option("--from", help="Whose names the weights have.")
    ] = SourceFormat.diffusers,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Says the network; not needed where diffusers' config.json is there."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Make a model directory from weights of other code; every name and shape must fit."""
    from launch.weights.convert import import_weights

    done = import_weights(file, out, source.value, recipe, overrides or [])
    typer.echo(done.to_json() if as_json else f"{out}: {done.kind}, {done.parameters:,} parameters")


@export_app.command(
    epilog="Examples:  [bold]mezzotint export runs/adm/model out --to guided_diffusion[/]  ·  "
    "[bold]mezzotint export runs/emoji_unet/model out --to diffusers[/]",
)
def export(
    model: Annotated[str, typer.Argument(help="A model directory, a path or URL.")],
    out: Annotated[Path, typer.Argument(help="A new directory.")],
    target: Annotated[
        TargetFormat, typer.Option("--to", help="Whose names the weights get.")
    ] = TargetFormat.diffusers,
    *,
    as_json: AsJson = False,
) -> None:
    """Write a model's weights (safetensors) and settings (config.json) for other code."""
    from launch.weights.convert import export_model

    done = export_model(model, out, target.value)
    typer.echo(done.to_json() if as_json else "\n".join(done.files))
