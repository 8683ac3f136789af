"""`mezzotint data derive`: a set's images as codes, latents or hints."""

from typing import Annotated, Literal

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
    "  ·  [bold]mezzotint data derive photos out/latents --model runs/kl/model --flip[/]"
    "  ·  [bold]mezzotint data derive photos out/padded --model runs/dvae/model --image-fit pad "
    "--force-preprocessing[/]  ·  [bold]mezzotint data derive data/emoji out/edges --hint edges "
    "--size 64 --set low=50 --set high=150[/]  ·  [bold]mezzotint data derive data/emoji out/text "
    "--text-encoder runs/clip/model[/]  ·  [bold]mezzotint data derive data/emoji out/embeddings "
    "--clip runs/clip/model --text-features --flip[/]"
)

_EMBEDDINGS = "CLIP embeddings"

Model = Annotated[
    str | None, typer.Option(help="Model directory of an autoencoder, which encodes.")
]
Latents = Annotated[
    bool, typer.Option("--latents", help="Encode latents even if the autoencoder has codes.")
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
    typer.Option(
        "--half", help="Store features of captions in fp16.", rich_help_panel="Text features"
    ),
]
Clip = Annotated[
    str | None,
    typer.Option(
        help="Keep CLIP embeddings of images and captions: the model directory of a CLIP, or an "
        "open_clip checkpoint, '{kind: open_clip, checkpoint: FILE, tag: openai}'.",
        rich_help_panel=_EMBEDDINGS,
    ),
]
Normalize = Annotated[
    Literal["openai_17.2", "mean_std", "l2_sqrt_d"] | None,
    typer.Option(
        help="How networks see the image embeddings (default: mean_std).",
        rich_help_panel=_EMBEDDINGS,
    ),
]
WithTextFeatures = Annotated[
    bool,
    typer.Option(
        "--text-features",
        help="Keep features of the captions by the CLIP's text tower too.",
        rich_help_panel=_EMBEDDINGS,
    ),
]

Flip = Annotated[
    bool,
    typer.Option(
        "--flip",
        help="Encode the mirrored images too; training with data.flip_arrays=true reads one of the "
        "two.",
    ),
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
    clip: Clip = None,
    normalization: Normalize = None,
    batch: Annotated[int, typer.Option(help="Images encoded at a time.", min=1)] = 64,
    device: Device = None,
    processes: Processes = None,
    *,
    half: Half = False,
    text_features: WithTextFeatures = False,
    latents: Latents = False,
    flip: Flip = False,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Encode a set's images as codes or latents, with its captions by CLIP, or make hints.

    A set holds the digest of its encoder, and images are prepared as those were that it was trained
    on; or the settings and version of the detector.
    """
    from launch.data.derive import DeriveOptions, derive_set
    from launch.data.derive_embeddings import ClipOptions, derive_embedding_set
    from launch.data.derive_hints import HintOptions, check_one_way, derive_hint_set
    from launch.data.derive_text import TextOptions, derive_text_set
    from mezzotint.common.preprocessing import StatedPreprocessing
    from mezzotint.inference.encoding.embeddings import EmbeddingOptions

    ways = {"--model": model, "--hint": hint, "--text-encoder": text_encoder, "--clip": clip}
    of_hints = {"--size": size, "--set": settings, "--name": name}
    of_clip = {"--normalization": normalization, "--text-features": text_features}
    of_both = {"--flip": flip}
    check_one_way(ways, {"--model or --clip": of_both, "--hint": of_hints, "--clip": of_clip})
    dtype: FeatureType = "fp16" if half else "fp32"
    stated = StatedPreprocessing.of_options(image_fit, image_filter, force=force_preprocessing)
    if text_encoder is not None:
        text = TextOptions(url, out, text_encoder, dtype, batch, device, processes, as_json)
        report = derive_text_set(text)
    elif clip is not None:
        kept = EmbeddingOptions(normalization or "mean_std", text_features, dtype, flip)
        embeddings = ClipOptions(url, out, clip, kept, batch, device, processes, as_json, stated)
        report = derive_embedding_set(embeddings)
    elif hint is not None:
        given = tuple(settings or ())
        hints = HintOptions(url, out, hint, size, given, name, processes, as_json, stated)
        report = derive_hint_set(hints)
    else:
        assert model is not None, "one of the four"
        on = device, processes, as_json, stated
        report = derive_set(DeriveOptions(url, out, model, batch, latents, flip, *on))
    if report is not None:
        typer.echo(report)
