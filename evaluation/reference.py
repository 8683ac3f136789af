"""The real images that samples are judged against: all pictures of one split."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.dataset import Dataset, open_dataset
from evaluation.config import ReferenceConfig
from mezzotint.common.errors import UserError


@dataclass(frozen=True)
class Reference:
    """Keys, captions and pictures (N, H, W, 3) uint8 of one split, and which were held out."""

    held_out: str
    """Name of the split, and of the part that its test pictures form."""
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    pictures: Tensor
    parts: tuple[str, ...]
    fingerprint: str

    def indices(self, part: str) -> list[int]:
        """Places of the pictures of one part: `held_out` or `train`."""
        return [index for index, name in enumerate(self.parts) if name == part]

    def captions_of_identical_pictures(self) -> list[frozenset[str]]:
        """For every picture the captions of all pictures equal to it pixel by pixel."""
        contents = [picture.numpy().tobytes() for picture in self.pictures]
        together: dict[bytes, set[str]] = {}
        for content, caption in zip(contents, self.captions, strict=True):
            together.setdefault(content, set()).add(caption)
        return [frozenset(together[content]) for content in contents]


def load(
    config: ReferenceConfig, image_size: int, progress: Callable[[int, int], None] | None = None
) -> Reference:
    """Read both parts of the split at the size of the samples.

    Raises:
        UserError: the set, the split or a picture cannot be read.
        UserError: the split is called `train`, or holds no test pictures.
    """
    if config.split == "train":
        raise UserError("reference.split: 'train' is the name of a part; rename the split")
    tests = open_dataset(config.part_of("test", image_size))
    trains = open_dataset(config.part_of("train", image_size))
    if len(tests) == 0:
        raise UserError(f"reference.split: {config.split} of {config.url} has no test part")
    total = len(tests) + len(trains)
    tell = progress or (lambda done, total: None)
    held_out = _pictures(tests, lambda done: tell(done, total))
    training = _pictures(trains, lambda done: tell(len(tests) + done, total))
    return Reference(
        held_out=config.split,
        keys=(*tests.keys(), *trains.keys()),
        captions=(*tests.captions(), *trains.captions()),
        pictures=torch.cat([held_out, training]),
        parts=(config.split,) * len(tests) + ("train",) * len(trains),
        fingerprint=tests.manifest.fingerprint,
    )


def _pictures(dataset: Dataset, progress: Callable[[int], None]) -> Tensor:
    pictures = []
    for index in range(len(dataset)):
        image = dataset.sample(index).image
        if image is None:
            raise UserError(f"{dataset.config.url}: holds no images; set reference.url")
        pictures.append(torch.tensor(image))
        progress(index + 1)
    return torch.stack(pictures)
