"""One evaluation of a class-conditional model: do its pictures show the classes asked for?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data_pipeline.config import LabelConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.image_grid import GridAxis, GridCell, image_grid
from evaluation.config import ClassEvaluation, ReferenceConfig
from evaluation.metrics import fid
from evaluation.metrics.intervals import wilson
from evaluation.metrics.linear_probe import LinearProbe
from evaluation.report import FILE
from evaluation.text_to_image import Progress, phase
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_json, write_text
from mezzotint.common.keyed_random import keyed_generator, keyed_seed
from mezzotint.inference.diffusion import DiffusionDrawer, Painted, Wish
from models.diffusion.sampling import NFE

SHEET = "grid_classes.png"
PROBE = (
    "logistic regression on standardised features of the training pictures, classes weighted alike"
)


@dataclass(frozen=True)
class LabelledImages:
    """Pictures (N, H, W, 3) uint8 and their classes (N,)."""

    pictures: Tensor
    labels: Tensor
    fingerprint: str


@dataclass(frozen=True)
class FeatureSet:
    """Pictures as the feature network sees them."""

    features: Tensor
    labels: Tensor


def evaluate_classes(
    config: ClassEvaluation, out: str | Path, progress: Progress | None = None
) -> Mapping[str, Any]:
    """Draw every class at every guidance scale and let an independent classifier name the classes.

    Writes `evaluation.json`, `report.md` and `grid_classes.png` into `out`; returns the tree of
    the first.

    Raises:
        UserError: something that is read is missing or does not fit.
    """
    tell = progress or (lambda *_: None)
    drawer = DiffusionDrawer.load(config.system, config.precision)
    names = class_names(config.classes)
    if drawer.diffusion.classes != len(names):
        raise UserError(
            f"classes: {len(names)} are named, but {config.system.model} draws "
            f"{drawer.diffusion.classes or 'no classes'}; name those of its recipe (data.label)"
        )
    network = config.features.build()
    real = {
        part: pictures_of(config.reference, config.classes, part, drawer.image_size)
        for part in ("train", "test")
    }
    seen = {
        part: FeatureSet(
            network(each.pictures, progress=phase(tell, f"features_{part}")), each.labels
        )
        for part, each in real.items()
    }
    probe = LinearProbe.fit(seen["train"].features, seen["train"].labels, len(names))
    asked = torch.arange(len(names)).repeat_interleave(config.per_class)
    train = fid.fit(seen["train"].features[balanced(seen["train"].labels, config.seed)])
    drawn, tree = [], report(config, drawer, real, network.protocol(), seen, probe)
    for scale in config.guidances:
        painted = paint(config, drawer, asked, scale, tell)
        features = network(painted.pictures, progress=phase(tell, "features"))
        tree["guidance"][f"{scale:g}"] = {
            **judged(probe, FeatureSet(features, asked), names),
            network.metric: distance(features, train),
            "network_calls": painted.calls.network,
        }
        drawn.append(painted)
    write(config, tree, names, drawn, Path(out))
    return tree


def class_names(config: LabelConfig) -> tuple[str, ...]:
    """What the classes are called."""
    return tuple(str(value) for value in config.values or range(config.count))


def pictures_of(
    config: ReferenceConfig, label: LabelConfig, part: Literal["train", "test"], size: int
) -> LabelledImages:
    """The real pictures of a part of the split that have one of the classes.

    Raises:
        UserError: a class has no picture in that part.
    """
    dataset = open_dataset(config.part_of(part, size, label))
    samples = [dataset.sample(index) for index in range(len(dataset))]
    labels = torch.tensor([sample.label for sample in samples])
    for place, name in enumerate(class_names(label)):
        if not (labels == place).any():
            raise UserError(
                f"classes: the {part} part of split {config.split} holds no {name}; choose "
                "another split, or leave the class out"
            )
    pictures = torch.stack([torch.tensor(sample.image) for sample in samples])
    return LabelledImages(pictures, labels, dataset.manifest.fingerprint)


def paint(
    config: ClassEvaluation, drawer: DiffusionDrawer, asked: Tensor, scale: float, tell: Progress
) -> Painted:
    """A picture of every class in `asked` (N,), and the calls of one batch.

    The seed of a place is the same at every scale.
    """
    sampling = config.system.sampling.model_copy(update={"guidance": scale})
    system = config.system.model_copy(update={"sampling": sampling})
    steered, done, calls = replace(drawer, config=system), phase(tell, "draw"), NFE()
    wishes = [
        Wish(keyed_seed(config.seed, place), label=int(label)) for place, label in enumerate(asked)
    ]
    pictures = []
    for first in range(0, len(wishes), config.batch):
        painted = steered.paint(wishes[first : first + config.batch])
        pictures.append(painted.pictures)
        calls = painted.calls
        done(min(first + config.batch, len(wishes)), len(wishes))
    return Painted(torch.cat(pictures), calls)


def judged(probe: LinearProbe, seen: FeatureSet, names: tuple[str, ...]) -> dict[str, Any]:
    """How often the classifier names the class that was asked for, in all and by class."""
    right = (probe(seen.features) == seen.labels).double()
    return {
        "accuracy": wilson(float(right.sum()), len(right)).to_json(),
        "accuracy_by_class": {
            name: float(right[seen.labels == place].mean()) for place, name in enumerate(names)
        },
    }


def distance(features: Tensor, theirs: fid.Gaussian) -> dict[str, Any]:
    """Fréchet distance to training pictures, as many of each class."""
    ours = fid.fit(features)
    return {
        "value": fid.frechet_distance(ours, theirs),
        "images": ours.n,
        "reference_images": theirs.n,
        "caution": fid.caution(ours, theirs),
    }


def balanced(labels: Tensor, seed: int) -> Tensor:
    """Places of as many samples of each class as the rarest has, chosen by the seed."""
    fewest = int(torch.bincount(labels).min())
    rng = keyed_generator(seed, "balanced")
    chosen = []
    for place in range(int(labels.max()) + 1):
        members = (labels == place).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=rng)[:fewest]])
    return torch.cat(chosen)


def report(
    config: ClassEvaluation,
    drawer: DiffusionDrawer,
    real: Mapping[str, LabelledImages],
    features: Mapping[str, object],
    seen: Mapping[str, FeatureSet],
    probe: LinearProbe,
) -> dict[str, Any]:
    """The tree of evaluation.json, before anything is drawn."""
    names = class_names(config.classes)
    return {
        "name": config.name,
        "kind": "classes",
        "protocol": {
            "system": drawer.protocol(),
            "classes": list(names),
            "per_class": config.per_class,
            "seed": config.seed,
            "classifier": PROBE,
            "features": dict(features),
            "reference": {
                "split": config.reference.split,
                "fingerprint": real["train"].fingerprint,
                "train": len(real["train"].labels),
                "test": len(real["test"].labels),
            },
            "intervals": "95%, Wilson",
        },
        "chance": 1 / len(names),
        "real_test": judged(probe, seen["test"], names),
        "guidance": {},
    }


def write(
    config: ClassEvaluation,
    tree: Mapping[str, Any],
    names: tuple[str, ...],
    drawn: list[Painted],
    out: Path,
) -> None:
    """The three files."""
    out.mkdir(parents=True, exist_ok=True)
    shown = min(config.shown, config.per_class)
    rows = 1 if shown < 4 else 2
    columns = shown // rows
    cells = [
        [
            GridCell(
                each.pictures[place : place + rows * columns].view(
                    rows, columns, *each.pictures.shape[1:]
                )
            )
            for each in drawn
        ]
        for place in range(0, len(names) * config.per_class, config.per_class)
    ]
    grid = image_grid(
        cells,
        rows=GridAxis(names, "class"),
        columns=GridAxis([f"{scale:g}" for scale in config.guidances], "guidance"),
        title=f"{config.name}: the first images of each class",
    )
    grid.save(out / SHEET)
    write_text(out / "report.md", to_markdown(tree))
    write_json(out / FILE, tree)


def to_markdown(tree: Mapping[str, Any]) -> str:
    """A summary for people."""

    def share(score: Mapping[str, float]) -> str:
        low, high = 100 * score["low"], 100 * score["high"]
        return f"{100 * score['value']:.1f}% [{low:.1f}, {high:.1f}], n = {score['n']}"

    lines = [
        f"# {tree['name']}: {len(tree['protocol']['classes'])} classes",
        "",
        f"- chance {100 * tree['chance']:.1f}%",
        f"- real held-out pictures {share(tree['real_test']['accuracy'])}",
    ]
    lines += [
        f"- drawn at guidance {scale}: {share(result['accuracy'])}"
        for scale, result in tree["guidance"].items()
    ]
    return "\n".join(lines) + "\n"
