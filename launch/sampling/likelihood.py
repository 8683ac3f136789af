"""`mezzotint likelihood`: bits per dimension of a set's pictures under a diffusion model."""

import json
from dataclasses import asdict, dataclass

from evaluation.metrics.likelihood import Bits, Integration, bits_per_dimension
from launch.progress import Reporter
from launch.sampling.inputs import pictures_of_set
from launch.sampling.model_lookup import target_of
from mezzotint.common.errors import UserError
from mezzotint.inference.config import DiffusionSystem
from mezzotint.inference.diffusion import DiffusionDrawer, Wish
from mezzotint.inference.images import to_bytes


@dataclass(frozen=True)
class LikelihoodResult:
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
            "bits_per_dimension": asdict(self.bits.mean),
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
) -> LikelihoodResult:
    """Bits per dimension of `limit` pictures, each under its own caption or class.

    Raises:
        UserError: no such model, or classes that no recipe explains.
        UserError: set or model cannot be read.
    """
    target = target_of(where)
    drawer = DiffusionDrawer.load(DiffusionSystem(model=target.model), "fp32")
    told = drawer.diffusion.conditioning
    if "class" in told and target.labels is None and drawer.diffusion.null is None:
        raise UserError(
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
            drawer, to_bytes(pictures.images), wishes, integration, reporter.callback("likelihood")
        )
    return LikelihoodResult(bits, pictures.source)
