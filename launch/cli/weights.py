"""`mezzotint average`, `import` and `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.cli.options import AsJson, ImageFilter, ImageFit, Overrides

weights_app = typer.Typer()
Target = Literal["guided_diffusion", "diffusers", "dit", "open_clip", "compvis"]
Source = Literal["guided_diffusion", "diffusers", "dit", "taming", "compvis"]


@weights_app.command(
    epilog="Examples:  [bold]mezzotint average runs/emoji_class --sigma-rel 0.15[/]  ·  "
    "[bold]mezzotint average runs/emoji_class --sigma-rel 0.05 --update 4000 --out early --json[/]"
)
def average(
    run: Annotated[Path, typer.Argument(help="The directory of a run with `ema.kind: power`.")],
    sigma_rel: Annotated[
        float, typer.Option(help="Relative width of the EMA: 0.05 is short, 0.25 is long.")
    ],
    update: Annotated[
        int | None, typer.Option(help="The last update; default: the last snapshot's.", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The model directory; default: beside the run's own.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write the model of another EMA length from a run's snapshots (post-hoc EMA)."""
    from launch.weights.ema import average_run

    averaged = average_run(run, sigma_rel, update, out)
    typer.echo(averaged.to_json() if as_json else averaged.to_text())


@weights_app.command(
    "import",
    epilog="Examples:  [bold]mezzotint import 256x256_diffusion.safetensors runs/adm --from "
    "guided_diffusion --recipe recipes/adm_256.yaml[/]  ·  [bold]mezzotint import "
    "ddpm-cifar10-32 runs/ddpm --from diffusers[/]  ·  [bold]mezzotint import "
    "sd/unet runs/sd --from diffusers model.process.prediction_type=v[/]  ·  "
    "[bold]mezzotint import ldm.safetensors runs/ldm --from compvis --recipe "
    "recipes/ldm_text2img_256.yaml --first-stage-recipe recipes/imagenet_kl_f8.yaml[/]",
)
def import_(
    file: Annotated[
        Path, typer.Argument(help="A .safetensors file, or a model directory of diffusers.")
    ],
    out: Annotated[str, typer.Argument(help="The new model directory, a path or URL.")],
    overrides: Overrides = None,
    source: Annotated[
        Source, typer.Option("--from", help="The format of the weights.")
    ] = "diffusers",
    recipe: Annotated[
        Path | None,
        typer.Option(help="The recipe of the network; not needed with diffusers' config.json."),
    ] = None,
    first_stage_recipe: Annotated[
        Path | None,
        typer.Option(help="Of a CompVis checkpoint: the recipe of its first stage, read too."),
    ] = None,
    latent_scale: Annotated[
        float | None,
        typer.Option(
            help="What its latents are multiplied by, where it holds no scale_factor.", min=1e-6
        ),
    ] = None,
    *,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    as_json: AsJson = False,
) -> None:
    """Write a model directory from weights of another library; all names and shapes must match.

    A whole folder of diffusers or a CompVis checkpoint becomes OUT/model, OUT/first_stage and
    OUT/text_encoder. It records how training images were prepared: as the recipe says, or the two
    options.
    """
    from launch.weights.convert import import_weights
    from mezzotint.common.preprocessing import StatedPreprocessing

    stated = StatedPreprocessing.of_options(image_fit, image_filter, force=True)
    if source == "compvis":
        from launch.weights.compvis import Recipes, import_compvis

        recipes = Recipes(recipe, first_stage_recipe)
        read = import_compvis(file, out, recipes, overrides or [], latent_scale, stated)
        typer.echo(read.to_json() if as_json else read.to_text())
        return
    done = import_weights(file, out, source, recipe, overrides or [], stated)
    typer.echo(done.to_json() if as_json else f"{out}: {done.kind}, {done.parameters:,} parameters")


@weights_app.command(
    epilog="Examples:  [bold]mezzotint export runs/adm/model out --to guided_diffusion[/]  ·  "
    "[bold]mezzotint export runs/emoji_unet out --to diffusers[/]  ·  "
    "[bold]mezzotint export runs/emoji_clip out --to open_clip[/]  ·  "
    "[bold]mezzotint export runs/emoji_latent out --to diffusers[/]  ·  "
    "[bold]mezzotint export runs/decoder out --to diffusers --prior runs/prior --upsampler "
    "runs/upsampler[/]",
)
def export(
    model: Annotated[
        str, typer.Argument(help="A training run or a model directory, a path or URL.")
    ],
    out: Annotated[Path, typer.Argument(help="A new directory.")],
    target: Annotated[
        Target, typer.Option("--to", help="The format of the weights.")
    ] = "diffusers",
    first_stage: Annotated[
        str | None,
        typer.Option(help="Of a latent model: where its first stage lies, if not where it did."),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="Of a decoder of unCLIP: its diffusion prior; with --upsampler."),
    ] = None,
    upsampler: Annotated[
        str | None,
        typer.Option(help="Of a decoder of unCLIP: its first upsampler; with --prior."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write a model's weights (safetensors) and settings (config.json) for another library.

    A latent diffusion model is written as a whole folder of diffusers, a CLIP as one of open_clip.
    A decoder of unCLIP with --prior and --upsampler is a folder of diffusers' UnCLIPPipeline.
    """
    if target == "compvis":
        from launch.weights.compvis import export_compvis

        written = export_compvis(model, out, first_stage)
        typer.echo(written.to_json() if as_json else written.to_text())
        return
    from launch.weights.convert import export_model
    from launch.weights.unclip_folder import UnclipModels

    unclip = UnclipModels.of_options(prior, upsampler)
    done = export_model(model, out, target, first_stage, unclip)
    lines = [*done.files, *([done.note] if done.note else [])]
    typer.echo(done.to_json() if as_json else "\n".join(lines))


@weights_app.command(
    epilog="Example:  [bold]mezzotint transfer runs/edge_control runs/edge_tuned --new "
    "runs/emoji_tuned[/]",
)
def transfer(
    control: Annotated[str, typer.Argument(help="The run or model directory of a control.")],
    out: Annotated[str, typer.Argument(help="The new model directory, a path or URL.")],
    new: Annotated[str, typer.Option(help="The base that it moves to, a run or model directory.")],
    old: Annotated[
        str | None, typer.Option(help="The base it was trained for; default: the recorded one.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Move a control (ControlNet) to another base of the same settings, such as a fine-tuned one.

    New - old is added to every weight that the control has copied from its base.
    """
    from launch.weights.transfer import transfer_control

    done = transfer_control(control, out, old=old, new=new)
    typer.echo(done.to_json() if as_json else done.to_text())
