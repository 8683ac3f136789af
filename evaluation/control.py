"""Evaluation of a control: how well its samples follow their hints, with it and without."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.hints.config import of_record
from data_pipeline.hints.detect import hint_of
from data_pipeline.hints.fidelity import TOLERANCE_SHARE, control_fidelity, tolerance
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from evaluation import samples
from evaluation.config import ControlEvaluationConfig, image_protocol
from evaluation.metrics.intervals import Score, bootstrap_mean
from evaluation.result import Evaluated, Metric
from evaluation.stages import Stages
from mezzotint.common.errors import UserError
from mezzotint.common.hint import Detector
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.config import DenoiserSystem
from mezzotint.inference.generator import GenerationRequest, ImageGenerator, Prompt
from mezzotint.inference.images import from_bytes
from mezzotint.inference.load import load_generator
from mezzotint.inference.preprocessing import image_model
from mezzotint.inference.runtime import Runtime
from models import store

GRID = "grid_control.png"
SCALE_0_PROMPTS = 8
"""Prompts on which a control of scale 0 is compared with the base."""


@dataclass(frozen=True)
class HintedImages:
    """Held-out images (N, H, W, 3) uint8, their captions and hints (N, C, H, W) in [0, 1]."""

    keys: Sequence[str]
    captions: Sequence[str]
    images: Tensor
    hints: Tensor
    fingerprint: str


def evaluate_control(
    config: ControlEvaluationConfig, runtime: Runtime, stages: Stages
) -> Evaluated:
    """Generate from the same captions and seeds with the control, without it and at scale 0.

    Raises:
        UserError: something that is read is missing or does not fit, or the hints of the control
            were made by no detector.
    """
    detector = recorded_detector(config.system)
    plain = config.system.model_copy(update={"controls": ()})
    (control,) = config.system.controls
    off = config.system.model_copy(
        update={"controls": (control.model_copy(update={"scale": 0.0}),)}
    )
    base = _load(plain, config, runtime)
    with stages("reference") as report:
        image = config.reference.image_config(image_model(plain), base.image_size)
        dataset = open_dataset(config.reference.data_config("test", image))
        real = hinted_images(config, dataset, detector)
        report(len(real.keys), len(real.keys))
    captions = [""] * len(real.keys) if config.empty_captions else real.captions
    request = GenerationRequest(
        prompts=tuple(Prompt(each, key=key) for key, each in zip(real.keys, captions, strict=True)),
        number=config.samples_per_image,
        seed=config.seed,
        batch_size=config.batch,
    )
    with stages("uncontrolled") as report:
        uncontrolled = base.generate(request, progress=report).images
    with stages("controlled") as report:
        generator = _load(config.system, config, runtime)
        hinted = replace(request, hints=(real.hints,))
        controlled = generator.generate(hinted, progress=report).images
    with stages("scale_0"):
        count = min(SCALE_0_PROMPTS, len(real.keys))
        first = replace(request, prompts=request.prompts[:count])
        expected = base.generate(first).images
        zero = _load(off, config, runtime).generate(replace(first, hints=(real.hints[:count],)))
        changed = int((zero.images != expected).flatten(2).any(dim=2).sum())
    found = fidelities(config, detector, real, controlled, uncontrolled)
    return Evaluated(
        protocol={
            "system": generator.protocol(),
            "detector": detector.model_dump(mode="json"),
            **_protocol(config, real, image_protocol(image)),
        },
        metrics={
            **found,
            "changed_at_scale_0": {f"of {count * config.samples_per_image}": float(changed)},
        },
        write_images=partial(write_grid, config, real, controlled, uncontrolled),
    )


def _protocol(
    config: ControlEvaluationConfig, real: HintedImages, image: Mapping[str, object]
) -> dict[str, object]:
    """How the samples were made and compared."""
    return {
        "seed": config.seed,
        "batch": config.batch,
        "captions": "empty" if config.empty_captions else "of the images",
        "samples_per_image": config.samples_per_image,
        "edge_tolerance": f"{tolerance(*real.images.shape[1:3]):g} pixels: {TOLERANCE_SHARE} "
        "of the diagonal, at least 1",
        "reference": {
            "split": config.reference.split,
            "fingerprint": real.fingerprint,
            "images": len(real.keys),
            **image,
        },
        "intervals": "95% over images, bootstrap",
    }


def recorded_detector(system: DenoiserSystem) -> Detector:
    """What made the hints that the system's only control was trained on.

    Raises:
        UserError: another number of controls, or no detector.
    """
    if len(system.controls) != 1:
        raise UserError(
            f"system.controls: has {len(system.controls)}; this evaluation is of one control"
        )
    directory = system.controls[0].model
    hint = store.describe(directory).hint
    if hint is None or hint.detector is None:
        raise UserError(
            f"system.controls: {directory} records no detector, so its samples cannot be compared "
            "with hints; evaluate a control of derived hints"
        )
    return hint.detector


def hinted_images(
    config: ControlEvaluationConfig, dataset: Dataset, detector: Detector
) -> HintedImages:
    """Images of the held-out part, chosen by the seed, and the hints that are made of them."""
    if len(dataset) == 0:
        raise UserError(f"reference.split: {config.reference.split} has no test part")
    keys, maker = dataset.keys(), of_record(detector)
    chosen = samples.choose(keys, config.limit, config.seed)
    images, hints = [], []
    for index in chosen:
        image = dataset.sample(index).image
        if image is None:
            raise UserError(f"{dataset.config.url}: holds no images; set reference.url")
        images.append(torch.tensor(image, device="cpu"))
        hints.append(torch.from_numpy(hint_of(maker, image)))
    return HintedImages(
        keys=[keys[index] for index in chosen],
        captions=[dataset.caption(index) for index in chosen],
        images=torch.stack(images),
        hints=torch.stack(hints),
        fingerprint=dataset.manifest.fingerprint,
    )


def fidelities(
    config: ControlEvaluationConfig,
    detector: Detector,
    real: HintedImages,
    controlled: Tensor,
    uncontrolled: Tensor,
) -> Mapping[str, Mapping[str, Metric]]:
    """The fidelity of both kinds of samples (P, N, H, W, 3) and the ratio of their means.

    That of edges is also counted without a tolerance.
    """
    rng = partial(keyed_generator, config.seed, "control")
    count = controlled.shape[1]
    hints = real.hints.repeat_interleave(count, dim=0)
    found: dict[str, dict[str, Metric]] = {}
    for same_pixel in (False, True):
        groups = {
            name: control_fidelity(
                detector, hints, from_bytes(images.flatten(0, 1)), same_pixel=same_pixel
            )
            for name, images in (("controlled", controlled), ("uncontrolled", uncontrolled))
        }
        metric = groups["controlled"].metric.replace(" ", "_")
        values = {
            name: torch.from_numpy(each.values).view(-1, count).mean(dim=1)
            for name, each in groups.items()
        }
        found[metric] = {name: bootstrap_mean(each, rng(name)) for name, each in values.items()}
        ratio = ratio_of_means(values["controlled"], values["uncontrolled"], rng("ratio"))
        found[f"{metric}_ratio"] = {"controlled to uncontrolled": ratio}
    return found


def ratio_of_means(
    one: Tensor, other: Tensor, rng: torch.Generator, resamples: int = 2000
) -> Score:
    """mean(one) / mean(other) of paired values (n,), with the percentile bootstrap's interval.

    A mean of 0 counts as 1e-9.
    """
    count = len(one)
    rows = torch.randint(count, (resamples, count), generator=rng, device=rng.device)
    ratios = one[rows].mean(dim=1) / other[rows].mean(dim=1).clamp(min=1e-9)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64, device=ratios.device)
    low, high = torch.quantile(ratios, ends).tolist()
    value = float(one.mean() / other.mean().clamp(min=1e-9))
    return Score(value=value, low=low, high=high, n=count)


def write_grid(
    config: ControlEvaluationConfig,
    real: HintedImages,
    controlled: Tensor,
    uncontrolled: Tensor,
    out: Path,
) -> None:
    """`grid_control.png`: hint, controlled and uncontrolled samples, and the real image."""
    hints = real.hints if real.hints.shape[1] in (1, 3) else real.hints.mean(dim=1, keepdim=True)
    levels = (hints * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    seeds = range(config.samples_per_image)
    labels = ["hint", *("controlled" for _ in seeds), *("base" for _ in seeds), "real"]
    cells = [
        GridCell(
            [[levels[index], *controlled[index], *uncontrolled[index], real.images[index]]],
            real.captions[index],
        )
        for index in range(min(config.grid_images, len(real.keys)))
    ]
    if cells:
        unseen = "hints, with empty captions," if config.empty_captions else "captions and hints"
        title = f"{config.name}: {unseen} never seen in training"
        columns = 2 if config.samples_per_image == 1 else 1
        grid = image_grid(in_columns(cells, columns), title=title, image_labels=labels)
        grid.save(out / GRID)


def _load(
    system: DenoiserSystem, config: ControlEvaluationConfig, runtime: Runtime
) -> ImageGenerator:
    return load_generator(
        system, device=runtime.device, precision=config.precision, group=runtime.group
    )
