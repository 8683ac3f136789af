"""The metrics of images generated for captions, each with its baselines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.metrics import best_of_n, fid
from evaluation.metrics.clip_retrieval import distractors, retrieves
from evaluation.metrics.clip_score import clip_scores, shuffled
from evaluation.metrics.exact_match import Candidates, nearest
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score, bootstrap_mean, proportion
from evaluation.reference import Reference
from evaluation.result import Metrics
from evaluation.samples import SampleSet
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.runtime import Runtime


@dataclass(frozen=True)
class ExactMatches:
    """Exact matches of the chosen images (R,) and of all candidates (R, N), and the baselines."""

    chosen: Tensor
    candidates: Tensor
    real_images: Tensor
    """Of the chosen images, against undistorted real images."""
    shuffled_captions: Tensor
    nearest: tuple[str, ...]
    """Per prompt the caption of the nearest real image; the prompt's own where that is right."""
    distinct_images: int
    against_reconstructions: bool
    """Whether the real images are compared with as the system can reconstruct them."""


def match_exactly(
    samples: SampleSet,
    reference: Reference,
    reconstruct: Callable[[Tensor], Tensor | None],
    seed: int,
) -> ExactMatches:
    """Exact match against real images as the system could generate them, and unmodified."""
    real = Candidates.of(reference.images, reference.captions)
    reconstructed = reconstruct(reference.images)
    targets = real if reconstructed is None else Candidates.of(reconstructed, reference.captions)

    def hits(images: Tensor, captions: Sequence[str], candidates: Candidates) -> Tensor:
        matches = nearest(images, captions, candidates)
        return torch.tensor([match.exact for match in matches], device="cpu")

    chosen, captions = samples.chosen, samples.captions
    matches = nearest(chosen, captions, targets)
    prompts, count = samples.candidates.shape[:2]
    repeated = [caption for caption in captions for _ in range(count)]
    return ExactMatches(
        chosen=torch.tensor([match.exact for match in matches], device="cpu"),
        candidates=hits(samples.candidates.flatten(0, 1), repeated, targets).view(prompts, count),
        real_images=hits(chosen, captions, real),
        shuffled_captions=hits(chosen, shuffled_captions(samples, seed), targets),
        nearest=tuple(
            caption if match.exact else min(targets.captions[match.candidate])
            for caption, match in zip(captions, matches, strict=True)
        ),
        distinct_images=len(targets.captions),
        against_reconstructions=reconstructed is not None,
    )


def exact_match_metrics(samples: SampleSet, matches: ExactMatches) -> Metrics:
    """Proportion of samples whose nearest real image belongs to their own caption."""
    return {
        "exact_match": proportions(samples, matches.chosen),
        "exact_match_real_images": proportions(samples, matches.real_images),
        "exact_match_shuffled_captions": proportions(samples, matches.shuffled_captions),
    }


def clip_metrics(
    samples: SampleSet,
    reference: Reference,
    clip: ClipEmbedder,
    runtime: Runtime,
    *,
    choices: int,
    seed: int,
) -> Metrics:
    """CLIP scores, and retrieval of the own caption among `choices` captions, the own included.

    The score under shuffled captions is the chance-level baseline; that of the real images is
    what the CLIP model gives to perfect samples.
    """

    def embed_images(images: Tensor) -> Tensor:
        return runtime.in_blocks(clip.images, images, size=128)

    def embed_texts(captions: Sequence[str]) -> Tensor:
        return runtime.in_blocks(clip.texts, captions, size=256, item_name="caption")

    texts = embed_texts(reference.captions)
    index_of = {key: index for index, key in enumerate(reference.keys)}
    own = [index_of[prompt.key] for prompt in samples.prompts]
    generated = embed_images(samples.chosen)
    real = embed_images(reference.images[own])
    other = embed_texts(shuffled_captions(samples, seed))
    identical = reference.captions_of_identical_images()
    wrong = {
        index: distractors(
            reference.captions[index], reference.captions, identical[index], choices - 1, seed
        )
        for index in set(own)
    }

    def retrieved(images: Tensor) -> Tensor:
        hits = [
            retrieves(image, texts[index], texts[wrong[index]])
            for image, index in zip(images, own, strict=True)
        ]
        return torch.tensor(hits, device="cpu")

    return {
        "clip_score": means(samples, clip_scores(generated, texts[own]), seed),
        "clip_score_shuffled_captions": means(samples, clip_scores(generated, other), seed),
        "clip_score_real_images": means(samples, clip_scores(real, texts[own]), seed),
        "clip_retrieval": proportions(samples, retrieved(generated)),
        "clip_retrieval_real_images": proportions(samples, retrieved(real)),
    }


def frechet_metrics(
    samples: SampleSet,
    reference: Reference,
    network: FeatureNetwork,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Distance of the held-out samples to the held-out real images, and a baseline.

    The baseline `real_train` is the distance of as many real training images to the same images:
    what a system that copied training images would get. Without held-out samples it is the distance
    of training captions' samples to real training images.
    """
    rows = samples.indices(reference.held_out)
    if not rows:
        return _training_distance(samples, reference, network, progress)
    test, train = reference.indices(reference.held_out), reference.indices("train")
    order = torch.randperm(len(train), generator=keyed_generator(seed, "real_train"), device="cpu")
    copies = [train[index] for index in order[: len(rows)].tolist()]
    if min(len(rows), len(test), len(copies)) < 2:
        return {}
    images = torch.cat([samples.chosen[rows], reference.images[copies], reference.images[test]])
    features = network(images, progress=progress)
    generated, copied, real = torch.split(features, [len(rows), len(copies), len(test)])
    target = fid.fit(real)
    return {
        network.metric: {
            reference.held_out: FrechetDistance.between(generated, target),
            "real_train": FrechetDistance.between(copied, target),
        }
    }


def _training_distance(
    samples: SampleSet,
    reference: Reference,
    network: FeatureNetwork,
    progress: Callable[[int, int], None] | None,
) -> Metrics:
    train = reference.indices("train")
    if min(len(samples.prompts), len(train)) < 2:
        return {}
    images = torch.cat([samples.chosen, reference.images[train]])
    features = network(images, progress=progress)
    generated, real = torch.split(features, [len(samples.prompts), len(train)])
    distance = FrechetDistance.between(generated, fid.fit(real))
    return {network.metric: {"train": distance}}


def best_of_n_metrics(samples: SampleSet, matches: ExactMatches, part: str, seed: int) -> Metrics:
    """Exact match and CLIP score of the best of 1, 2, 4, ... candidates by the ranker's score.

    Means over all subsets of the candidates; empty if candidates were not ranked.
    """
    scores = samples.scores
    if scores is None or samples.candidates.shape[1] < 2 or not samples.indices(part):
        return {}
    exact, score = dict[str, Score](), dict[str, Score]()
    for size in best_of_n.sizes(scores.shape[1]):
        hits = best_of_n.expected_best(matches.candidates, scores, size)
        exact[str(size)] = proportion(per_caption(samples, part, hits).clamp(0.0, 1.0).tolist())
        best = 100.0 * best_of_n.expected_best(scores, scores, size)
        rng = keyed_generator(seed, "reranking")
        score[str(size)] = bootstrap_mean(per_caption(samples, part, best), rng)
    return {"exact_match_best_of_n": exact, "clip_score_best_of_n": score}


def per_caption(samples: SampleSet, part: str, values: Tensor) -> Tensor:
    """Mean of `values` (R,) over the repeats of each caption of `part`: (captions,) float64.

    Samples of one caption are not independent, so captions are what intervals count.
    """
    groups: dict[str, list[float]] = {}
    for index in samples.indices(part):
        groups.setdefault(samples.prompts[index].key, []).append(float(values[index]))
    averages = [sum(group) / len(group) for group in groups.values()]
    return torch.tensor(averages, dtype=torch.float64, device="cpu")


def proportions(samples: SampleSet, hits: Tensor) -> dict[str, Score]:
    """Proportion of hits (R,) per part, with Wilson's interval over captions."""
    return {part: proportion(per_caption(samples, part, hits).tolist()) for part in samples.parts}


def means(samples: SampleSet, values: Tensor, seed: int) -> dict[str, Score]:
    """Mean of values (R,) per part, with the bootstrap's interval over captions."""
    return {
        part: bootstrap_mean(
            per_caption(samples, part, values), keyed_generator(seed, "bootstrap", part)
        )
        for part in samples.parts
    }


def shuffled_captions(samples: SampleSet, seed: int) -> list[str]:
    """For every prompt the caption of another prompt of its part."""
    result = samples.captions
    for part in samples.parts:
        indices = samples.indices(part)
        own = list(dict.fromkeys(samples.prompts[index].caption for index in indices))
        partner = shuffled(own, keyed_generator(seed, "shuffled", part))
        other = {caption: own[partner[index]] for index, caption in enumerate(own)}
        for index in indices:
            result[index] = other[result[index]]
    return result
