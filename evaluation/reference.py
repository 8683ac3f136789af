"""The real images of one split, with which samples are compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.config import ImageConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.manifest import Attribute
from evaluation.config import ReferenceConfig
from mezzotint.common.errors import UserError


@dataclass(frozen=True)
class Reference:
    """Keys, captions, attributes and images (N, H, W, 3) uint8 of one split."""

    held_out: str
    """Name of the split, and of the part that its test images form."""
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    images: Tensor
    parts: tuple[str, ...]
    """`held_out` or `train`, one per image."""
    fingerprint: str
    attributes: tuple[Mapping[str, Attribute], ...] = ()

    def indices(self, part: str) -> list[int]:
        """Of the images of one part: `held_out` or `train`."""
        return [index for index, name in enumerate(self.parts) if name == part]

    def captions_of_identical_images(self) -> list[frozenset[str]]:
        """For every image the captions of all images equal to it pixel by pixel."""
        contents = [image.numpy().tobytes() for image in self.images]
        captions: dict[bytes, set[str]] = {}
        for content, caption in zip(contents, self.captions, strict=True):
            captions.setdefault(content, set()).add(caption)
        return [frozenset(captions[content]) for content in contents]


def load(
    config: ReferenceConfig,
    image: ImageConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """Read both parts of the split, prepared as `image` says.

    Raises:
        UserError: the set, the split or an image cannot be read.
        UserError: the split is called `train`, or holds no test images.
    """
    if config.split == "train":
        raise UserError("reference.split: 'train' is the name of a part; rename the split")
    test = open_dataset(config.data_config("test", image))
    train = open_dataset(config.data_config("train", image))
    if len(test) == 0:
        raise UserError(f"reference.split: {config.split} of {config.url} has no test part")
    images = []
    for dataset in (test, train):
        for index in range(len(dataset)):
            images.append(_image(dataset, index))
            if progress is not None:
                progress(len(images), len(test) + len(train))
    return Reference(
        held_out=config.split,
        keys=(*test.keys(), *train.keys()),
        captions=(*test.captions(), *train.captions()),
        images=torch.stack(images),
        parts=(config.split,) * len(test) + ("train",) * len(train),
        fingerprint=test.manifest.fingerprint,
        attributes=tuple(
            each.entry(index).attributes for each in (test, train) for index in range(len(each))
        ),
    )


def _image(dataset: Dataset, index: int) -> Tensor:
    image = dataset.sample(index).image
    if image is None:
        raise UserError(f"{dataset.config.url}: holds no images; set reference.url")
    return torch.tensor(image, device="cpu")
