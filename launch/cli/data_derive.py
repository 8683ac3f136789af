"""`mezzotint data derive`: a set's images as codes, latents or hints."""

from typing import Annotated

import typer

from data_pipeline.hints.config import DetectorKind
from launch.cli.options import (
    AsJson,
    Device,
    ForcePreprocessing,
    ImageFilter,
    ImageFit,
    Processes,
)
from mezzotint.common.text_features import FeatureType

EXAMPLES = (
    "Examples:  [bold]mezzotint data derive data/emoji out/tokens --model runs/dvae/model[/]"
    "  ·  [bold]mezzotint data derive data/emoji out/latents --model runs/emoji_kl/model[/]"
    "  ·  [bold]mezzotint data derive photos out/padded --model runs/dvae/model --image-fit pad "
    "--force-preprocessing[/]  ·  [bold]mezzotint data derive data/emoji out/edges --hint edges "
    "--size 64 --set low=50 --set high=150[/]  ·  [bold]mezzotint data derive data/emoji out/text "
    "--text-encoder runs/clip/model[/]"
)

Model = Annotated[
    str | None, typer.Option(help="Model directory of an autoencoder, which encodes.")
]
Hint = Annotated[
    DetectorKind | None,
    typer.Option(help="Make hints for a control: the detector.", rich_help_panel="Hints"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of the detector; repeat for more.",
        rich_help_panel="Hints",
    ),
]
Size = Annotated[
    int | None, typer.Option(help="Side of the images in pixels.", min=1, rich_help_panel="Hints")
]
Name = Annotated[
    str | None,
    typer.Option(
        help="Name of the member that holds the hint (default: the detector's).",
        rich_help_panel="Hints",
    ),
]

TextEncoder = Annotated[
    str | None,
    typer.Option(
        help="Keep features of the captions: a CLIP's model directory, a T5's, or its settings as "
        "in a recipe, '{kind: t5, directory: t5, length: 77}'.",
        rich_help_panel="Text features",
    ),
]
Half = Annotated[
    bool,
    typer.Option("--half", help="Store them in fp16.", rich_help_panel="Text features"),
]


def derive(
    url: Annotated[str, typer.Argument(help="A shard set: a directory or an fsspec URL.")],
    out: Annotated[str, typer.Argument(help="The new set: a directory or an fsspec URL.")],
    model: Model = None,
    hint: Hint = None,
    settings: Settings = None,
    size: Size = None,
    name: Name = None,
    text_encoder: TextEncoder = None,
    batch: Annotated[int, typer.Option(help="Images encoded at a time.", min=1)] = 64,
    device: Device = None,
    processes: Processes = None,
    *,
    half: Half = False,
    latents: Annotated[
        bool, typer.Option("--latents", help="Encode latents even if the autoencoder has codes.")
    ] = False,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Encode a set's images as codes or latents, its captions as features, or make hints.

    A set of codes or latents holds the encoder's digest; images are prepared as those were that the
    model was trained on. A set of hints holds the detector's settings and version.
    """
    from launch.data.derive import DeriveOptions, derive_set
    from launch.data.derive_hints import HintOptions, check_one_way, derive_hint_set
    from launch.data.derive_text import TextOptions, derive_text_set
    from mezzotint.common.errors import UserError
    from mezzotint.common.preprocessing import StatedPreprocessing

    if text_encoder is not None:
        if model is not None or hint is not None:
            raise UserError("--text-encoder: encodes captions; leave out --model and --hint")
        dtype: FeatureType = "fp16" if half else "fp32"
        text = TextOptions(url, out, text_encoder, dtype, batch, device, processes, as_json)
        report = derive_text_set(text)
        if report is not None:
            typer.echo(report)
        return
    stated = StatedPreprocessing.of_options(image_fit, image_filter, force=force_preprocessing)
    check_one_way(model, hint, {"--size": size, "--set": settings, "--name": name})
    if hint is not None:
        detector = tuple(settings or ())
        hints = HintOptions(url, out, hint, size, detector, name, processes, as_json, stated)
        typer.echo(derive_hint_set(hints))
        return
    assert model is not None, "checked above"
    options = DeriveOptions(url, out, model, batch, latents, device, processes, as_json, stated)
    report = derive_set(options)
    if report is not None:
        typer.echo(report)
