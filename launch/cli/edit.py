"""`mezzotint edit`: variations, interpolations and text edits of real images."""

import typer

edit_app = typer.Typer(
    help="Edit images with trained systems.", no_args_is_help=True, rich_markup_mode="rich"
)
