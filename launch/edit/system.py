"""The unCLIP system that a path names, for edits."""

from collections.abc import Mapping
from pathlib import Path

from mezzotint.common.errors import UserError
from mezzotint.inference.config import ClipSource, SystemConfig, UnclipSystem
from mezzotint.inference.model_lookup import (
    decoder_system,
    find_model,
    is_pipeline,
    pipeline_systems,
    system_of,
)


def edit_system(
    where: str, name: str | None = None, clip: ClipSource | None = None
) -> tuple[str, UnclipSystem]:
    """Name and configuration of the system of a pipeline's run, or of a decoder by itself.

    Of a pipeline it is the system `name`, by default the first one of kind unclip. `clip` is
    another place of the CLIP.

    Raises:
        UserError: nothing is there, or nothing that has a decoder of image embeddings.
    """
    if is_pipeline(where):
        title, config = _of_pipeline(Path(where), name)
    elif name is not None:
        raise UserError(f"--system {name}: {where} is no pipeline's run directory")
    else:
        model = find_model(where)
        title, config = model.name, decoder_system(model.directory)
    return title, config if clip is None else config.model_copy(update={"clip": clip})


def _of_pipeline(run: Path, name: str | None) -> tuple[str, UnclipSystem]:
    systems: Mapping[str, SystemConfig]
    systems = pipeline_systems(run) if name is None else {name: system_of(run, name)}
    for title, config in systems.items():
        if isinstance(config, UnclipSystem):
            return title, config
    kinds = ", ".join(f"{title} ({config.kind})" for title, config in systems.items())
    raise UserError(
        f"{run}: has no decoder of image embeddings, which edits need, but {kinds or 'no systems'};"
        " give the run of an unclip system, or of its decoder"
    )
