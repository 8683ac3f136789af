"""Evaluation of a class-conditional model: class accuracy by a linear probe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.config import ImageConfig, LabelConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.image_grid import GridAxis, GridCell, image_grid
from evaluation.config import ClassConditionalConfig, Part, ReferenceConfig, image_protocol
from evaluation.metrics import fid
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.linear_probe import LinearProbe, classifier_accuracy
from evaluation.result import Evaluated, Metric, by_metric
from evaluation.stages import StageProgress, Stages
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.generator import GenerationRequest, GenerationResult, Prompt
from mezzotint.inference.runtime import Runtime

GRID = "grid_classes.png"
CLASSIFIER = (
    "logistic regression on standardised features of the training images, classes weighted equally"
)


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, H, W, 3) uint8 and their classes (N,)."""

    images: Tensor
    labels: Tensor
    fingerprint: str


def evaluate_class_conditional(
    config: ClassConditionalConfig, runtime: Runtime, stages: Stages
) -> Evaluated:
    """Generate images of every class at every guidance scale; a linear probe classifies them.

    Raises:
        UserError: something that is read is missing or does not fit.
    """
    generator = DiffusionGenerator.load(config.system, runtime)
    names = class_names(config.classes)
    if generator.classes != len(names):
        raise UserError(
            f"classes: {len(names)} are named, but {config.system.model} generates "
            f"{generator.classes or 'no classes'}; name those of its recipe (data.label)"
        )
    network = config.features.build(replace(runtime, bf16=False))
    image = config.reference.image_config(config.system.model, generator.image_size)
    train, test = (
        read_images(config.reference, config.classes, part, image) for part in ("train", "test")
    )
    with stages("features_train") as report:
        train_features = network(train.images, progress=report)
    with stages("features_test") as report:
        test_features = network(test.images, progress=report)
    probe = LinearProbe.fit(train_features, train.labels, len(names))
    balanced_train = fid.fit(train_features[balanced(train.labels, config.seed)])
    labels = torch.arange(len(names), device="cpu").repeat_interleave(config.samples_per_class)
    found: dict[str, Mapping[str, Metric]] = {
        "real_test": classifier_accuracy(probe, test_features, test.labels, names),
        "chance": {"accuracy": 1 / len(names)},
    }
    generated = []
    for scale in config.guidance_scales:
        with stages("generate") as report:
            result = generate(config, generator, scale, report)
        with stages("features") as report:
            features = network(result.images.flatten(0, 1), progress=report)
        found[f"guidance {scale:g}"] = {
            **classifier_accuracy(probe, features, labels, names),
            network.metric: FrechetDistance.between(features, balanced_train),
            **({} if result.nfe is None else {"network_calls": result.nfe.network}),
        }
        generated.append(result.images)
    return Evaluated(
        protocol=protocol(config, generator, network, train, test, image),
        metrics=by_metric(found),
        write_images=partial(write_grid, config, names, generated),
    )


def class_names(config: LabelConfig) -> tuple[str, ...]:
    """The values of the label's attribute, in the order of the classes."""
    return tuple(str(value) for value in config.values or range(config.count))


def read_images(
    config: ReferenceConfig, label: LabelConfig, part: Part, image: ImageConfig
) -> LabelledImages:
    """The real images of a part of the split that have one of the classes.

    Raises:
        UserError: a class has no image in that part.
    """
    dataset = open_dataset(config.data_config(part, image, label))
    samples = [dataset.sample(index) for index in range(len(dataset))]
    labels = torch.tensor([sample.label for sample in samples], device="cpu")
    for index, name in enumerate(class_names(label)):
        if not (labels == index).any():
            raise UserError(
                f"classes: the {part} part of split {config.split} holds no {name}; choose "
                "another split, or leave the class out"
            )
    images = torch.stack([torch.tensor(sample.image, device="cpu") for sample in samples])
    return LabelledImages(images, labels, dataset.manifest.fingerprint)


def generate(
    config: ClassConditionalConfig,
    generator: DiffusionGenerator,
    scale: float,
    progress: StageProgress,
) -> GenerationResult:
    """Images of every class, from the same noise at every scale."""
    sampling = config.system.sampling.model_copy(update={"guidance": scale})
    system = config.system.model_copy(update={"sampling": sampling})
    request = GenerationRequest(
        prompts=tuple(Prompt(label=label) for label in range(len(class_names(config.classes)))),
        number=config.samples_per_class,
        seed=config.seed,
        batch_size=config.batch,
    )
    return replace(generator, config=system).generate(request, progress=progress)


def balanced(labels: Tensor, seed: int) -> Tensor:
    """Indices of as many samples of each class as the rarest has, chosen by the seed."""
    fewest = int(torch.bincount(labels).min())
    rng = keyed_generator(seed, "balanced")
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=rng, device=labels.device)
        chosen.append(members[order[:fewest]])
    return torch.cat(chosen)


def protocol(
    config: ClassConditionalConfig,
    generator: DiffusionGenerator,
    network: FeatureNetwork,
    train: LabelledImages,
    test: LabelledImages,
    image: ImageConfig,
) -> Mapping[str, object]:
    """What is needed to compute the same metrics."""
    return {
        "system": generator.protocol(),
        "classes": list(class_names(config.classes)),
        "samples_per_class": config.samples_per_class,
        "seed": config.seed,
        "classifier": CLASSIFIER,
        "features": network.protocol(),
        "reference": {
            "split": config.reference.split,
            "fingerprint": train.fingerprint,
            "train": len(train.labels),
            "test": len(test.labels),
            **image_protocol(image),
        },
        "intervals": "95%, Wilson",
    }


def write_grid(
    config: ClassConditionalConfig, names: Sequence[str], generated: Sequence[Tensor], out: Path
) -> None:
    """`grid_classes.png`: the first images (classes, N, H, W, 3), a column per guidance scale."""
    count = min(config.grid_images, config.samples_per_class)
    rows = 1 if count < 4 else 2
    cells = []
    for label in range(len(names)):
        blocks = [images[label, :count].chunk(rows) for images in generated]
        cells.append([GridCell([list(row) for row in block]) for block in blocks])
    grid = image_grid(
        cells,
        rows=GridAxis(names, "class"),
        columns=GridAxis([f"{scale:g}" for scale in config.guidance_scales], "guidance"),
        title=f"{config.name}: the first images of each class",
    )
    grid.save(out / GRID)
