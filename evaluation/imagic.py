"""Evaluation of Imagic: do edits reach their target text, and stay near their source?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.image_grid import GridCell, image_grid, in_columns
from evaluation import reference, samples
from evaluation.config import ImagicEvaluationConfig, image_protocol
from evaluation.metrics.clip_retrieval import distractors, retrieves
from evaluation.metrics.edits import Trial, trials
from evaluation.metrics.exact_match import Candidates, nearest
from evaluation.metrics.intervals import bootstrap_mean, proportion
from evaluation.reference import Reference
from evaluation.result import Evaluated, Metrics
from evaluation.stages import Stages
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator, keyed_seed
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.imagic.edit import ImagicRequest, ImagicResult, edit
from mezzotint.inference.imagic.scores import FeatureDistance, ImagicScores, scores_of
from mezzotint.inference.load import load_generator
from mezzotint.inference.preprocessing import image_model
from mezzotint.inference.runtime import Runtime

GRID = "grid_imagic.png"


@dataclass(frozen=True)
class Edited:
    """One edit at its best eta."""

    trial: Trial
    eta: float
    image: Tensor
    """(H, W, 3) uint8."""
    unedited: Tensor
    """(H, W, 3) uint8: a sample of the target's caption, from the same noise."""
    distance: float
    """In features, from the source."""
    unedited_distance: float


def evaluate_imagic(config: ImagicEvaluationConfig, runtime: Runtime, stages: Stages) -> Evaluated:
    """Edit real images by replacements of words in their captions.

    Raises:
        UserError: something that is read is missing or does not fit, or no image has a caption
            with the replaced words and a target.
    """
    generator = load_generator(
        config.system, device=runtime.device, precision=config.precision, group=runtime.group
    )
    clip = ClipEmbedder.load(config.clip, runtime.device)
    distance = FeatureDistance.of(None, None, runtime.device)
    with stages("reference") as report:
        image = config.reference.image_config(image_model(config.system), generator.image_size)
        real = reference.load(config.reference, image, report)
    chosen, found = chosen_trials(config, real), []
    with stages("edit") as report:
        for number, trial in enumerate(chosen):
            source, target = real.images[trial.source], real.captions[trial.target]
            seed = keyed_seed(config.seed, real.keys[trial.source], target)
            request = ImagicRequest(source, target, etas=config.etas, seed=seed % 2**31)
            result = edit(generator, request, config.settings)
            scores = scores_of(result, source, target, distance, clip)
            found.append(at_best_eta(config, trial, result, scores))
            report(number + 1, len(chosen))
    with stages("clip"):
        metrics = edit_metrics(config, found, real, clip, replace(runtime, bf16=False))
    return Evaluated(
        protocol={
            "system": generator.protocol(),
            "seed": config.seed,
            "settings": config.settings.model_dump(mode="json"),
            "etas": list(config.etas),
            "eta": "of each edit the one with the highest CLIP score of those that are nearer to "
            "the source than the unedited sample",
            "distance": f"squared differences of the features of {distance.name}",
            "clip": clip.protocol(),
            "retrieval": f"own target above {config.retrieval_choices - 1} wrong captions",
            "reference": {
                "split": real.held_out,
                "fingerprint": real.fingerprint,
                "images": len(real.keys),
                **image_protocol(image),
            },
            "intervals": "95% over edits; Wilson for proportions, bootstrap for means",
        },
        metrics=metrics,
        write_images=partial(write_grid, config, real, found),
    )


def at_best_eta(
    config: ImagicEvaluationConfig, trial: Trial, result: ImagicResult, scores: ImagicScores
) -> Edited:
    """An edit at the eta that its scores mark."""
    best = scores.best
    assert best is not None, "scored with a CLIP model"
    return Edited(
        trial,
        config.etas[best],
        result.images[best, 0],
        result.unedited[0],
        scores.etas[best].distance,
        scores.unedited.distance,
    )


def chosen_trials(config: ImagicEvaluationConfig, real: Reference) -> list[Trial]:
    """Edits of each replacement in turn, in an order fixed by the seed.

    Raises:
        UserError: none is left for a replacement.
    """
    identical, kinds = real.captions_of_identical_images(), []
    for words in config.replacements:
        every = trials(real.captions, identical, words.old, words.new)
        if not every:
            raise UserError(
                f"replacements: no image has a caption with '{words.old}' and another image with "
                f"'{words.new}' in its place"
            )
        keys = [f"{real.keys[each.source]}/{words.name}" for each in every]
        kinds.append([every[index] for index in samples.choose(keys, None, config.seed)])
    rounds = range(max(map(len, kinds)))
    in_turn = [kind[each] for each in rounds for kind in kinds if each < len(kind)]
    return in_turn[: config.edits]


def edit_metrics(
    config: ImagicEvaluationConfig,
    found: Sequence[Edited],
    real: Reference,
    clip: ClipEmbedder,
    runtime: Runtime,
) -> Metrics:
    """Retrieval of the target, and nearness to the source, of edits and of unedited samples."""
    texts = runtime.in_blocks(clip.texts, real.captions, size=256, item_name="caption")
    identical = real.captions_of_identical_images()
    wrong = [
        distractors(
            real.captions[each.trial.target],
            real.captions,
            identical[each.trial.target],
            config.retrieval_choices - 1,
            config.seed,
        )
        for each in found
    ]

    def retrieved(images: Sequence[Tensor]) -> list[bool]:
        vectors = runtime.in_blocks(clip.images, torch.stack(list(images)), size=128)
        return [
            retrieves(vector, texts[each.trial.target], texts[others])
            for vector, each, others in zip(vectors, found, wrong, strict=True)
        ]

    edited = retrieved([each.image for each in found])
    nearer = [each.distance < each.unedited_distance for each in found]
    both = [one and other for one, other in zip(edited, nearer, strict=True)]
    groups = {
        "edited": edited,
        "unedited sample": retrieved([each.unedited for each in found]),
        "source": retrieved([real.images[each.trial.source] for each in found]),
    }
    candidates = Candidates.of(real.images, real.captions)
    targets = [real.captions[each.trial.target] for each in found]
    matches = nearest(torch.stack([each.image for each in found]), targets, candidates)
    rng = partial(keyed_generator, config.seed, "imagic")
    distances = {
        "edited": torch.tensor([each.distance for each in found], device="cpu"),
        "unedited sample": torch.tensor([each.unedited_distance for each in found], device="cpu"),
    }
    return {
        "target_retrieved": {
            name: proportion(list(map(float, hits))) for name, hits in groups.items()
        },
        "exact_match_with_target": {"edited": proportion([float(each.exact) for each in matches])},
        "nearer_to_source_than_unedited": {"edited": proportion(list(map(float, nearer)))},
        "retrieved_and_nearer": {"edited": proportion(list(map(float, both)))},
        "distance_from_source": {
            name: bootstrap_mean(values, rng(name)) for name, values in distances.items()
        },
    }


def write_grid(
    config: ImagicEvaluationConfig, real: Reference, found: Sequence[Edited], out: Path
) -> None:
    """`grid_imagic.png`: source, edit at its best eta, unedited sample and target of each."""
    cells = [
        GridCell(
            [
                [
                    real.images[each.trial.source],
                    each.image,
                    each.unedited,
                    real.images[each.trial.target],
                ]
            ],
            f"{real.captions[each.trial.target]} (eta {each.eta:g})",
        )
        for each in found[: config.grid_images]
    ]
    if cells:
        labels = ("source", "edited", "unedited", "real target")
        title = f"{config.name}: real images edited by Imagic"
        image_grid(in_columns(cells, 2), title=title, image_labels=labels).save(out / GRID)
