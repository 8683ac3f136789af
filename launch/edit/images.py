"""The image files of an edit, prepared for the decoder and for CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.images import read_image, square
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import StatedPreprocessing
from mezzotint.inference.encoding.embeddings import clip_images
from mezzotint.inference.preprocessing import image_config
from mezzotint.inference.unclip.generator import UnclipGenerator


@dataclass(frozen=True)
class EditImages:
    """Images of files, one row each."""

    decoder: Tensor
    """(n, h, w, 3) uint8 at the decoder's size."""
    embedding: Tensor
    """(n, D), of the images at CLIP's own size."""
    names: tuple[str, ...]


def read_images(
    paths: Sequence[Path], system: UnclipGenerator, stated: StatedPreprocessing
) -> EditImages:
    """Files as both models take them.

    Raises:
        UserError: a file is not there, holds no image, or is smaller than the decoder's images.
    """
    decoder = image_config(system.config.decoder, system.decoder.image_size, stated)
    clip = clip_images(system.config.clip)
    small: list[Tensor] = []
    large: list[Tensor] = []
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such image")
        image = read_image(path.read_bytes(), str(path), max_pixels=decoder.max_pixels).image
        side = max(image.size) if decoder.fit == "pad" else min(image.size)
        if side < decoder.size:
            raise UserError(
                f"{path}: has {image.width} x {image.height} pixels, and the decoder generates "
                f"{decoder.size} x {decoder.size}; give an image of at least that size"
            )
        for config, found in ((decoder, small), (clip, large)):
            found.append(torch.from_numpy(square(image, config).copy()))
    with system.runtime.inference():
        embedding = system.clip.project_images(torch.stack(large))
    names = tuple(path.name for path in paths)
    return EditImages(torch.stack(small), embedding, names)
