"""How far an edit has come to its target text and gone from its source, for each eta."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.images import from_bytes
from mezzotint.inference.imagic.edit import ImagicResult
from models.autoencoders.perceptual import Perceptual, RandomNetwork, linear_weights, load_vgg

RANDOM_WIDTHS = (32, 64, 128)


@dataclass(frozen=True)
class FeatureDistance:
    """The perceptual distance of images from one image (LPIPS, arXiv 1801.03924, eq. 1)."""

    name: str
    """The network of the features, for reports."""
    network: Perceptual
    device: torch.device

    @classmethod
    def of(
        cls, vgg: str | None, linear: str | None, device: str | torch.device
    ) -> "FeatureDistance":
        """LPIPS where VGG-16's weights are on disk, else features of a random network.

        Raises:
            UserError: a file is missing or holds other weights.
        """
        place = torch.device(device)
        if vgg is None:
            network = Perceptual(RandomNetwork(RANDOM_WIDTHS, 0), None)
            return cls("a convolutional network of random weights, seed 0", network, place)
        channels = None if linear is None else linear_weights(linear)
        name = "VGG-16" if linear is None else "LPIPS, VGG-16"
        return cls(name, Perceptual(load_vgg(vgg), channels), place)

    @torch.no_grad()
    def __call__(self, images: Tensor, source: Tensor) -> Tensor:
        """Distances (n,) of images (n, H, W, 3) uint8 from one (H, W, 3)."""
        one = from_bytes(source)[None].to(self.device)
        each = [from_bytes(image)[None].to(self.device) for image in images]
        return torch.stack([self.network(image, one).float() for image in each]).cpu()


@dataclass(frozen=True)
class Score:
    """Means over the images of one column of an edit's strip."""

    distance: float
    """From the source, in features."""
    clip: float | None = None
    """100 x cosine with the target text; None without a CLIP model."""


@dataclass(frozen=True)
class ImagicScores:
    """The scores of an edit."""

    etas: Sequence[Score]
    unedited: Score
    """Of the target's caption alone, from the same noises."""
    source: Score
    """Of the image that is edited."""

    @property
    def best(self) -> int | None:
        """The index of the best eta; None without a CLIP model.

        The one with the highest CLIP score, of those that are nearer to the source than the
        unedited sample of the target is, or of all where none is.
        """
        nearer = [each.distance < self.unedited.distance for each in self.etas]
        found = [
            (each.clip, -index)
            for index, each in enumerate(self.etas)
            if each.clip is not None and (nearer[index] or not any(nearer))
        ]
        return -max(found)[1] if found else None


def scores_of(
    result: ImagicResult,
    source: Tensor,
    target: str,
    distance: FeatureDistance,
    clip: ClipEmbedder | None,
) -> ImagicScores:
    """The scores of an edit of a source (H, W, 3) uint8."""
    text = None if clip is None else clip.texts([target])[0]

    def score(images: Tensor) -> Score:
        far = float(distance(images, source).mean())
        if clip is None or text is None:
            return Score(far)
        return Score(far, 100 * float((clip.images(images) @ text).mean()))

    return ImagicScores(
        [score(images) for images in result.images], score(result.unedited), score(source[None])
    )
