"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mezzotint.common.errors import UserError


def image_path(path: Path | None) -> Path | None:
    """The path of an image to write, checked before the work that makes it.

    Raises:
        UserError: its suffix is not that of an image format that is written, or it is a directory.
    """
    if path is None:
        return None
    if path.suffix.lower() not in _IMAGE_SUFFIXES:
        raise UserError(f"{path}: give a file that ends with {', '.join(_IMAGE_SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give a file in it")
    return path


_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, one YAML file (see recipes/).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings, like optimizer.lr.peak=1e-4."),
]
Runs = Annotated[Path, typer.Option(help="The directory that holds the run directories.")]
RunName = Annotated[str, typer.Argument(help="A run: its name under --runs, or its directory.")]
StageName = Annotated[str | None, typer.Argument(help="One of its stages.")]
Redo = Annotated[
    list[str] | None,
    typer.Option(help="Archive a finished stage and its downstream stages, and run them again."),
]
ClusterFile = Annotated[Path, typer.Option(help="A cluster file (see recipes/clusters/).")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; default: all GPUs, else the CPU.")
]
Processes = Annotated[
    int | None,
    typer.Option(
        help="Processes that share the work; any number gives the same result. Default: one per "
        "GPU.",
        min=1,
    ),
]
ImageFit = Annotated[
    Literal["pad", "crop"] | None,
    typer.Option(help="How images become squares; the model's own way by default."),
]
ImageFilter = Annotated[
    Literal["bicubic", "lanczos", "box", "bilinear"] | None,
    typer.Option(help="How images are resized; the model's own filter by default."),
]
ForcePreprocessing = Annotated[
    bool,
    typer.Option("--force-preprocessing", help="Take images prepared otherwise than in training."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ImageOut = Annotated[
    Path, typer.Option(help="Where the image goes, a .png, .jpg or .webp.", callback=image_path)
]
