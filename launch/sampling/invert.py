"""`mezzotint invert`: pictures to the noise that DDIM draws them from, and back."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data_pipeline.image_grid import GridAxis, GridCell, image_grid
from evaluation.metrics.psnr import psnr
from launch.progress import Reporter
from launch.sampling.inputs import Pictures, pictures_of_files
from launch.sampling.model_lookup import Target, target_of
from launch.sampling.noise_file import NoiseFile
from launch.sampling.overrides import Value, changed
from mezzotint.common.errors import UserError
from mezzotint.inference.config import DiffusionSystem
from mezzotint.inference.diffusion import DiffusionDrawer, Wish
from mezzotint.inference.images import to_bytes
from models.diffusion.inversion import noise_statistics


@dataclass(frozen=True)
class Inverting:
    """How pictures are inverted."""

    captions: tuple[str, ...]
    """One each, or one for all; none tells the model nothing."""
    classes: tuple[str, ...]
    steps: tuple[int, ...]
    times: str
    start: float
    """The time pictures are taken for."""
    out: Path
    noise: Path
    shows_progress: bool = True


@dataclass(frozen=True)
class Trip:
    """There and back in so many steps."""

    steps: int
    noise: Tensor
    """(n, 3, H, W)."""
    back: Tensor
    """(n, H, W, 3) uint8."""
    psnr: tuple[float, ...]
    statistics: Mapping[str, tuple[float, ...]]
    """Of the noise, by name; one number a picture."""

    @property
    def mean_psnr(self) -> float:
        """In dB, over the pictures."""
        return sum(self.psnr) / len(self.psnr)


@dataclass(frozen=True)
class Inverted:
    """The trips, the sheet and the noise of the longest one."""

    options: Inverting
    names: tuple[str, ...]
    trips: tuple[Trip, ...]

    def to_text(self) -> str:
        """A line per number of steps."""
        lines = ["steps   PSNR     noise: mean  deviation  kurtosis  neighbours"]
        for trip in self.trips:
            means = {key: sum(each) / len(each) for key, each in trip.statistics.items()}
            shown = f"{means['mean']:>12.3f} {means['deviation']:>10.3f} {means['kurtosis']:>9.2f}"
            lines.append(
                f"{trip.steps:>5} {trip.mean_psnr:>6.2f} dB {shown} {means['neighbours']:>11.3f}"
            )
        lines.append(f"{self.options.out}: pictures, noise and what is drawn from it")
        lines.append(
            f"{self.options.noise}: the noise of {self.trips[-1].steps} steps, for "
            "`mezzotint sample --from-noise`"
        )
        return "\n".join(lines)

    def to_json(self) -> str:
        """All numbers, one list entry per picture."""
        runs: list[dict[str, Any]] = [
            {
                "steps": trip.steps,
                "network_calls": 2 * trip.steps,
                "psnr": [round(each, 4) if math.isfinite(each) else None for each in trip.psnr],
                "noise": {
                    key: [round(each, 5) for each in values]
                    for key, values in trip.statistics.items()
                },
            }
            for trip in self.trips
        ]
        tree = {
            "out": str(self.options.out),
            "noise": str(self.options.noise),
            "pictures": list(self.names),
            "times": self.options.times,
            "start": self.options.start,
            "runs": runs,
        }
        return json.dumps(tree, indent=2, ensure_ascii=False)


def invert(where: str, images: Sequence[Path], options: Inverting) -> Inverted:
    """Encode and decode the pictures at every number of steps, and write sheet and noise.

    Raises:
        UserError: no such model, picture, class or grid of times.
        UserError: a picture or the model cannot be read or does not
            take what it is told.
    """
    if options.noise.suffix != ".safetensors":
        raise UserError(f"--noise {options.noise}: ends with .safetensors")
    target = target_of(where)
    drawer = DiffusionDrawer.load(DiffusionSystem(model=target.model), "fp32")
    pictures = pictures_of_files(images, drawer.image_size)
    wishes = wishes_for(len(images), options, target)
    with Reporter(None, shows=options.shows_progress) as reporter:
        trips = [
            there_and_back(drawer, pictures, wishes, steps, options, reporter)
            for steps in sorted(set(options.steps))
        ]
    names = tuple(path.name for path in images)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(target.called, names, pictures, trips).save(options.out)
    longest = trips[-1]
    NoiseFile(
        noise=longest.noise,
        digest=drawer.digests["model"],
        steps=longest.steps,
        times=options.times,
        captions=tuple(wish.caption or "" for wish in wishes),
        classes=tuple(wish.label for wish in wishes if wish.label is not None),
    ).save(options.noise)
    return Inverted(options, names, tuple(trips))


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Positive whole numbers, as in 10,25,50.

    Raises:
        UserError: something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--{option} {text}: looks like 10,25,50")
    return tuple(int(part) for part in parts)


def wishes_for(count: int, options: Inverting, target: Target) -> list[Wish]:
    """What the model is told of each picture.

    Raises:
        UserError: neither one for all nor one each.
    """

    def each(option: str, values: Sequence[Any]) -> list[Any]:
        if len(values) not in (0, 1, count):
            raise UserError(
                f"--{option}: {len(values)} given for {count} pictures; give one for all, or one "
                "each in their order"
            )
        return list(values) * (count if len(values) == 1 else 1) or [None] * count

    captions = each("caption", options.captions)
    labels = each("class", [target.label(name) for name in options.classes])
    return [Wish(0, caption, label) for caption, label in zip(captions, labels, strict=True)]


def there_and_back(
    drawer: DiffusionDrawer,
    pictures: Pictures,
    wishes: Sequence[Wish],
    steps: int,
    options: Inverting,
    reporter: Reporter,
) -> Trip:
    """One trip of all pictures."""
    settings: dict[str, Value] = {"steps": steps, "times": options.times, "thresholding": "none"}
    config = changed(drawer.config, settings | {"last": options.start})
    assert isinstance(config, DiffusionSystem)
    trip = drawer.diffusion.there_and_back(
        pictures.images,
        drawer.condition(wishes),
        sampling=config.sampling,
        progress=reporter.callback(f"invert in {steps} steps"),
    )
    back = to_bytes(trip.back)
    return Trip(
        steps=steps,
        noise=trip.noise,
        back=back,
        psnr=tuple(psnr(back, to_bytes(pictures.images)).tolist()),
        statistics={
            key: tuple(values.tolist())
            for key, values in asdict(noise_statistics(trip.noise)).items()
        },
    )


def sheet(
    name: str, names: Sequence[str], pictures: Pictures, trips: Sequence[Trip]
) -> Image.Image:
    """Two rows a picture: the noise, and what is drawn from it, beside the picture itself."""
    real = to_bytes(pictures.images)
    blank = torch.full_like(real[0], 255)
    cells, labels = [], []
    for place, label in enumerate(names):
        shown = [blank, *(to_bytes(trip.noise[place] / 2) for trip in trips)]
        cells.append([GridCell([[each]]) for each in shown])
        labels.append("noise, at half its size")
        shown = [real[place], *(trip.back[place] for trip in trips)]
        cells.append([GridCell([[each]]) for each in shown])
        labels.append(label)
    columns = ["original", *(f"{trip.steps} steps" for trip in trips)]
    notes = [
        "PSNR of the way back, mean over the pictures: "
        + ", ".join(f"{trip.mean_psnr:.1f} dB in {trip.steps} steps" for trip in trips)
        + "."
    ]
    return image_grid(
        cells,
        title=f"{name}: there and back",
        rows=GridAxis(labels),
        columns=GridAxis(columns),
        notes=notes,
        max_width=800,
    )
