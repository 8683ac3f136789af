"""Evaluation of edits by an unCLIP system: what variations keep, and whether text diffs arrive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.image_grid import GridAxis, GridCell, image_grid, in_columns
from evaluation import reference, samples
from evaluation.config import EditsConfig, Replacement, image_protocol
from evaluation.metrics.edits import Trial, best, chance_of_equal, trials
from evaluation.metrics.exact_match import Candidates, nearest
from evaluation.metrics.intervals import Score, bootstrap_mean, proportion
from evaluation.reference import Reference
from evaluation.result import Evaluated, Metric, Metrics
from evaluation.stages import StageProgress, Stages
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.preprocessing import image_model
from mezzotint.inference.runtime import Runtime
from mezzotint.inference.unclip import edits
from mezzotint.inference.unclip.edits import EditSettings
from mezzotint.inference.unclip.generator import UnclipGenerator
from mezzotint.inference.unclip.spherical import text_difference


@dataclass(frozen=True)
class Varied:
    """Variations (n, H, W, 3) uint8 of the real images of `rows`, and of the inverted images."""

    rows: tuple[int, ...]
    images: Tensor
    reconstructions: Tensor
    psnr: Tensor
    """(n,) in dB, of the reconstructions."""


@dataclass(frozen=True)
class Replaced:
    """Images (trials, thetas, H, W, 3) uint8 edited by a replacement, and whether they arrived."""

    trials: Sequence[Trial]
    images: Tensor
    hits: Tensor
    """(trials, thetas) bool."""
    theta: int
    """Which theta the first half of the trials has chosen."""


def evaluate_edits(config: EditsConfig, runtime: Runtime, stages: Stages) -> Evaluated:
    """Vary real images, and edit them by words.

    Raises:
        UserError: something that is read is missing or does not fit, an attribute that no image
            has, or a replacement with fewer than two images to try it on.
    """
    system = UnclipGenerator.load(config.system, runtime).up_to(0)
    with stages("reference") as report:
        image = config.reference.image_config(image_model(config.system), system.image_size)
        real = reference.load(config.reference, image, report)
    check_attributes(config, real)
    candidates = Candidates.of(real.images, real.captions)
    metrics: dict[str, Mapping[str, Metric]] = {}
    varied: Varied | None = None
    if config.variations:
        with stages("variations") as report:
            varied = vary(system, config, real, report)
            metrics |= variation_metrics(config, real, candidates, varied)
    found: dict[str, Replaced] = {}
    for each in config.replacements:
        with stages(each.name) as report:
            found[each.name] = replace_words(system, config, real, candidates, each, report)
    metrics |= replacement_metrics(config, found)
    return Evaluated(
        protocol={
            "system": system.protocol(),
            "seed": config.seed,
            "batch": config.batch,
            "inversion": f"{settings_of(config).steps} DDIM steps each way from "
            f"timestep {config.start:g}, empty captions",
            "eta": config.eta,
            "guidance": {"inversion and variations": 1.0, "text diffs": config.guidance},
            "thetas": list(config.thetas),
            "theta": "chosen by the first half of the trials, scored on the other half",
            "reference": {
                "split": real.held_out,
                "fingerprint": real.fingerprint,
                "images": len(real.keys),
                **image_protocol(image),
            },
            "nearest": f"by squared difference of 8-bit pixels among the {len(candidates.captions)}"
            " distinct images of the split; of pixel-identical ones any caption counts",
            "intervals": "95% over images; Wilson for proportions, bootstrap for means",
        },
        metrics=metrics,
        write_images=partial(write_grids, config, real, varied, found),
    )


def settings_of(config: EditsConfig, guidance: float = 1.0) -> EditSettings:
    """How images are inverted, without guidance, and generated again."""
    return EditSettings(
        steps=config.steps,
        guidance=guidance,
        start=config.start,
        seed=config.seed,
        batch_size=config.batch,
    )


def check_attributes(config: EditsConfig, real: Reference) -> None:
    """Refuse attributes that no image of the reference has.

    Raises:
        UserError: with the first one.
    """
    known = {name for each in real.attributes for name in each}
    for name in config.attributes:
        if name not in known:
            raise UserError(
                f"attributes: no image has an attribute '{name}'; there is "
                f"{', '.join(sorted(known)) or 'none'}"
            )


def vary(
    system: UnclipGenerator,
    config: EditsConfig,
    real: Reference,
    progress: StageProgress,
) -> Varied:
    """One variation of each of the chosen held-out images."""
    held_out = real.indices(real.held_out)
    chosen = samples.choose([real.keys[each] for each in held_out], config.variations, config.seed)
    rows = tuple(held_out[index] for index in chosen)
    settings = settings_of(config)
    latents = edits.invert(system, real.images[list(rows)], settings=settings)
    images = edits.variations(system, latents, (config.eta,), settings=settings, progress=progress)
    return Varied(rows, images[:, 0, 0], latents.reconstruction, latents.psnr)


def variation_metrics(
    config: EditsConfig, real: Reference, candidates: Candidates, varied: Varied
) -> Metrics:
    """What of the source the image nearest to a variation has, against an image drawn at random."""
    sources = list(varied.rows)
    shown = [nearest_captions(candidates, image) for image in torch.split(varied.images, 1)]
    row_of = {caption: row for row, caption in enumerate(real.captions)}
    kept: dict[str, list[float]] = {}
    chance: dict[str, list[float]] = {}
    any_kept = torch.zeros(len(sources), dtype=torch.bool, device="cpu")
    any_chance = torch.zeros((len(sources), len(real.keys)), dtype=torch.bool, device="cpu")
    for name in config.attributes:
        values = [each.get(name) for each in real.attributes]
        kept[name], chance[name] = [], []
        for index, (row, captions) in enumerate(zip(sources, shown, strict=True)):
            same = any(values[row_of[caption]] == values[row] for caption in captions)
            kept[name].append(float(same))
            chance[name].append(chance_of_equal(values[row], values))
            any_kept[index] |= same
            equal = [value == values[row] for value in values]
            any_chance[index] |= torch.tensor(equal, device="cpu")
    if len(config.attributes) > 1:
        name = " or ".join(config.attributes)
        kept[name] = any_kept.double().tolist()
        chance[name] = any_chance.double().mean(dim=1).tolist()
    differences = (varied.images.double() - real.images[sources].double()).abs()
    again = (varied.reconstructions.double() - real.images[sources].double()).abs()
    rng = partial(keyed_generator, config.seed, "variations")
    own = [
        float(real.captions[row] in captions) for row, captions in zip(sources, shown, strict=True)
    ]
    return {
        "variation_keeps": {name: proportion(hits) for name, hits in kept.items()},
        "variation_keeps_by_chance": {name: sum(each) / len(each) for name, each in chance.items()},
        "variation_is_nearest_to_its_source": {"images": proportion(own)},
        "levels_from_source": {
            "variation": bootstrap_mean(differences.flatten(1).mean(dim=1), rng("variation")),
            "reconstruction": bootstrap_mean(again.flatten(1).mean(dim=1), rng("again")),
        },
        "reconstruction_psnr": {"images": bootstrap_mean(varied.psnr, rng("psnr"))},
    }


def nearest_captions(candidates: Candidates, images: Tensor) -> frozenset[str]:
    """The captions of the real image nearest to one image (1, H, W, 3) uint8."""
    (match,) = nearest(images, [""], candidates)
    return candidates.captions[match.candidate]


def replace_words(
    system: UnclipGenerator,
    config: EditsConfig,
    real: Reference,
    candidates: Candidates,
    words: Replacement,
    progress: StageProgress,
) -> Replaced:
    """Edit images by a replacement at every theta.

    Raises:
        UserError: fewer than two images have a caption with these words and a target.
    """
    all_trials = trials(real.captions, real.captions_of_identical_images(), words.old, words.new)
    keys = [f"{real.keys[each.source]}/{words.name}" for each in all_trials]
    chosen = [all_trials[each] for each in samples.choose(keys, config.trials, config.seed)]
    if len(chosen) < 2:
        raise UserError(
            f"replacements: {len(chosen)} images have a caption with '{words.old}' and another "
            f"image with '{words.new}' in its place; two are needed"
        )
    settings = settings_of(config)
    latents = edits.invert(system, real.images[[each.source for each in chosen]], settings=settings)
    pairs = [(real.captions[each.source], real.captions[each.target]) for each in chosen]
    directions = torch.stack([text_difference(*system.clip.texts(pair)) for pair in pairs])
    images = edits.turn(
        system,
        latents,
        directions,
        config.thetas,
        settings=settings_of(config, config.guidance),
        progress=progress,
    )
    targets = [target for _, target in pairs for _ in config.thetas]
    matches = nearest(images.flatten(0, 1), targets, candidates)
    hits = torch.tensor([each.exact for each in matches], device="cpu").view(len(chosen), -1)
    half = len(chosen) // 2
    scores = [
        (float(index), proportion(hits[:half, index].double().tolist()))
        for index in range(len(config.thetas))
    ]
    return Replaced(chosen, images, hits, int(best(scores)))


def replacement_metrics(config: EditsConfig, found: Mapping[str, Replaced]) -> Metrics:
    """How often edits by words reach their target: at every theta, and at the chosen one."""
    reached, at_best, thetas = {}, {}, {}
    for name, each in found.items():
        half = len(each.trials) // 2
        for index, theta in enumerate(config.thetas):
            reached[f"{name}, theta {theta:g}"] = score(each.hits[:, index])
        at_best[name] = score(each.hits[half:, each.theta])
        thetas[name] = float(config.thetas[each.theta])
    if not found:
        return {}
    return {"text_diff_reaches": at_best, "best_theta": thetas, "text_diff_by_theta": reached}


def score(hits: Tensor) -> Score:
    """The proportion of hits (n,)."""
    return proportion(hits.double().tolist())


def write_grids(
    config: EditsConfig,
    real: Reference,
    varied: Varied | None,
    found: Mapping[str, Replaced],
    out: Path,
) -> None:
    """`grid_variations.png` and, for each replacement, `grid_replacement_N.png`."""
    cells = []
    if varied is not None:
        columns = (varied.reconstructions, varied.images)
        cells = [
            GridCell([[real.images[row], *(each[index] for each in columns)]], real.captions[row])
            for index, row in enumerate(varied.rows[: config.grid_images])
        ]
    if cells:
        labels = ("source", "inverted", "varied")
        title = f"{config.name}: variations at eta {config.eta:g}"
        image_grid(in_columns(cells, 4), title=title, image_labels=labels).save(
            out / "grid_variations.png"
        )
    for number, (name, each) in enumerate(found.items()):
        rows = [
            [GridCell([[real.images[trial.source]]])]
            + [
                GridCell([[image]], correct=bool(hit))
                for image, hit in zip(each.images[index], each.hits[index], strict=True)
            ]
            for index, trial in enumerate(each.trials[: config.grid_images])
        ]
        if not rows:
            continue
        grid = image_grid(
            rows,
            title=f"{config.name}: {name}",
            rows=GridAxis([real.captions[trial.source] for trial in each.trials[: len(rows)]]),
            columns=GridAxis(["source", *(f"{theta:g}" for theta in config.thetas)], "theta"),
        )
        grid.save(out / f"grid_replacement_{number}.png")
