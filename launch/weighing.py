"""`mezzotint likelihood`: bits per dimension of a set's pictures under a diffusion model."""

import json
from dataclasses import dataclass

from evaluation.config import DiffusionSystem
from evaluation.likelihood import Bits, Integration, bits_per_dimension
from evaluation.painting import DiffusionDrawer, Wish
from evaluation.pixels import to_bytes
from launch.errors import LaunchError
from launch.pictures import pictures_of_set
from launch.progress import Reporter
from launch.targets import target_of


@dataclass(frozen=True)
class Weighed:
    """The result, and of what."""

    bits: Bits
    source: str

    def to_text(self) -> str:
        """One line with the interval."""
        mean = self.bits.mean
        return (
            f"{mean.value:.3f} bits per dimension ({mean.low:.3f} to {mean.high:.3f}, 95% over "
            f"{mean.n} pictures of {self.source})"
        )

    def to_json(self) -> str:
        """The result with its protocol."""
        tree = {
            "bits_per_dimension": self.bits.mean.to_json(),
            "pictures": self.source,
            "protocol": dict(self.bits.protocol),
        }
        return json.dumps(tree, indent=2, ensure_ascii=False)


def weigh(
    where: str,
    url: str,
    *,
    split: str | None,
    limit: int,
    integration: Integration,
    shows_progress: bool,
) -> Weighed:
    """Bits per dimension of `limit` pictures, each under its own caption or class.

    Raises:
        LaunchError: no such model, or classes that no recipe explains.
        DataError, ModelError, EvaluationError: set or model cannot be read.
    """
    target = target_of(where)
    drawer = DiffusionDrawer.load(DiffusionSystem(model=target.model), "fp32")
    told = drawer.diffusion.told
    if "class" in told and target.labels is None and drawer.diffusion.null is None:
        raise LaunchError(
            f"{where}: is told classes, and how pictures get theirs is in its training's recipe; "
            "give the training run's directory"
        )
    pictures = pictures_of_set(
        url,
        drawer.image_size,
        limit=limit,
        seed=integration.seed,
        split=split,
        label=target.labels if "class" in told else None,
    )
    count = len(pictures.images)
    labels = pictures.labels or (None,) * count
    captions = pictures.captions if drawer.captions is not None else (None,) * count
    wishes = [Wish(0, caption, label) for caption, label in zip(captions, labels, strict=True)]
    with Reporter(None, shows=shows_progress) as reporter:
        bits = bits_per_dimension(
            drawer, to_bytes(pictures.images), wishes, integration, reporter.counted("likelihood")
        )
    return Weighed(bits, pictures.source)
