"""From a sample set and the real images to scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evaluation.metrics import fid
from evaluation.metrics.clip_score import clip_scores, distractors, retrieves, shuffled
from evaluation.metrics.exact_match import Candidates, nearest
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.intervals import Score, bootstrap_mean, proportion
from evaluation.metrics.reranking import rerank
from evaluation.reference import Reference
from evaluation.report import ClipScores, Frechet, Reranked, Scores
from evaluation.samples import SampleSet
from mezzotint.common.keyed_random import keyed_generator


class Embedder(Protocol):
    """A CLIP model as judged with: unit-norm embeddings (n, D) of pictures and of captions."""

    def images(self, pictures: Tensor) -> Tensor:
        """Embed (n, H, W, 3) uint8."""
        ...

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embed captions."""
        ...

    def protocol(self) -> Mapping[str, str]:
        """Which CLIP model this is, with its hash."""
        ...


def per_caption(samples: SampleSet, part: str, values: Tensor) -> Tensor:
    """Mean of `values` (R,) over the repeats of each caption of `part`: (captions,) float64.

    Samples of one caption are not independent, so captions are what intervals count.
    """
    groups: dict[str, list[float]] = {}
    for index in samples.of(part):
        groups.setdefault(samples.rows[index].key, []).append(float(values[index]))
    return torch.tensor([sum(group) / len(group) for group in groups.values()]).double()


def shares(samples: SampleSet, hits: Tensor) -> Scores:
    """Proportion of hits (R,) per part, with Wilson's interval over captions."""
    parts = dict.fromkeys(row.part for row in samples.rows)
    return {part: proportion(per_caption(samples, part, hits).tolist()) for part in parts}


def means(samples: SampleSet, values: Tensor, seed: int) -> Scores:
    """Mean of values (R,) per part, with the bootstrap's interval over captions."""
    parts = dict.fromkeys(row.part for row in samples.rows)
    return {
        part: bootstrap_mean(
            per_caption(samples, part, values), keyed_generator(seed, "bootstrap", part)
        )
        for part in parts
    }


def other_captions(samples: SampleSet, seed: int) -> list[str]:
    """For every row the caption of another row of its part: the shuffled-caption baseline."""
    captions = [row.caption for row in samples.rows]
    result = list(captions)
    for part in dict.fromkeys(row.part for row in samples.rows):
        rows = samples.of(part)
        own = list(dict.fromkeys(captions[index] for index in rows))
        partner = shuffled(own, keyed_generator(seed, "shuffled", part))
        swap = {caption: own[partner[place]] for place, caption in enumerate(own)}
        for index in rows:
            result[index] = swap[captions[index]]
    return result


@dataclass(frozen=True)
class ExactMatches:
    """Hits of the chosen samples (R,), of all candidates (R, N), and the two comparisons."""

    chosen: Tensor
    every: Tensor
    real_images: Tensor
    shuffled_captions: Tensor
    nearest: tuple[str, ...]
    """Per row the caption of the nearest candidate; the row's own one where that is right too."""
    distinct_candidates: int
    reconstructs: bool
    """Whether the candidates are what the system makes of the real images."""


def exact_matches(
    samples: SampleSet,
    reference: Reference,
    reconstruct: Callable[[Tensor], Tensor | None],
    seed: int,
) -> ExactMatches:
    """Exact match against the candidates as the system could draw them, and as they are."""
    real = Candidates.of(reference.pictures, reference.captions)
    redrawn = reconstruct(reference.pictures)
    drawable = real if redrawn is None else Candidates.of(redrawn, reference.captions)
    captions = [row.caption for row in samples.rows]

    def hits(pictures: Tensor, asked: Sequence[str], candidates: Candidates) -> Tensor:
        return torch.tensor([match.exact for match in nearest(pictures, asked, candidates)])

    matches = nearest(samples.chosen, captions, drawable)

    rows, count = samples.pictures.shape[:2]
    asked = [caption for caption in captions for _ in range(count)]
    every = hits(samples.pictures.flatten(0, 1), asked, drawable).view(rows, count)
    chosen = samples.chosen
    return ExactMatches(
        chosen=torch.tensor([match.exact for match in matches]),
        every=every,
        real_images=hits(chosen, captions, real),
        shuffled_captions=hits(chosen, other_captions(samples, seed), drawable),
        nearest=tuple(
            caption if match.exact else min(drawable.captions[match.candidate])
            for caption, match in zip(captions, matches, strict=True)
        ),
        distinct_candidates=len(drawable.captions),
        reconstructs=redrawn is not None,
    )


@dataclass(frozen=True)
class ClipJudgement:
    """CLIP scores, and retrieval of the own caption by samples and by real images."""

    scores: ClipScores
    retrieval: Scores
    retrieval_real_images: Scores


def clip_judgement(
    samples: SampleSet, reference: Reference, clip: Embedder, *, choices: int, seed: int
) -> ClipJudgement:
    """Judge the chosen samples; retrieval is among `choices` captions, the own one included."""
    texts = clip.texts(reference.captions)
    place = {key: index for index, key in enumerate(reference.keys)}
    own = [place[row.key] for row in samples.rows]
    drawn = clip.images(samples.chosen)
    real = clip.images(reference.pictures[own])
    other = clip.texts(other_captions(samples, seed))

    twins = reference.captions_of_identical_pictures()
    questions = {
        index: distractors(
            reference.captions[index], reference.captions, twins[index], choices - 1, seed
        )
        for index in set(own)
    }

    def retrieved(images: Tensor) -> Tensor:
        return torch.tensor(
            [
                retrieves(image, texts[index], texts[questions[index]])
                for image, index in zip(images, own, strict=True)
            ]
        )

    return ClipJudgement(
        scores=ClipScores(
            samples=means(samples, clip_scores(drawn, texts[own]), seed),
            shuffled_captions=means(samples, clip_scores(drawn, other), seed),
            real_images=means(samples, clip_scores(real, texts[own]), seed),
        ),
        retrieval=shares(samples, retrieved(drawn)),
        retrieval_real_images=shares(samples, retrieved(real)),
    )


def frechet(
    samples: SampleSet,
    reference: Reference,
    network: FeatureNetwork,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Frechet]:
    """Distance of the held-out samples to the held-out real images, and a scale for it.

    The scale, `real_train`, is the distance of as many real training images to the same set: what
    a system that copied training images would get.
    """
    rows = samples.of(reference.held_out)
    test, train = reference.indices(reference.held_out), reference.indices("train")
    order = torch.randperm(len(train), generator=keyed_generator(seed, "real_train")).tolist()
    control = [train[index] for index in order[: len(rows)]]
    if min(len(rows), len(test), len(control)) < 2:
        return {}
    pictures = torch.cat(
        [samples.chosen[rows], reference.pictures[control], reference.pictures[test]]
    )
    features = network(pictures, progress=progress)
    drawn, copied, real = torch.split(features, [len(rows), len(control), len(test)])
    target = fid.fit(real)

    def distance(part: Tensor) -> Frechet:
        gaussian = fid.fit(part)
        return Frechet(
            value=fid.frechet_distance(gaussian, target),
            images=gaussian.n,
            reference_images=target.n,
            dimensions=network.dimensions,
            against=f"test part of split {reference.held_out}",
            caution=fid.caution(gaussian, target),
        )

    return {"samples": distance(drawn), "real_train": distance(copied)}


def reranked(samples: SampleSet, exact: Tensor, part: str, seed: int) -> list[Reranked]:
    """Best of 1, 2, 4, ... on one part; nothing if candidates were not ranked."""
    if samples.scores is None or samples.pictures.shape[1] < 2 or not samples.of(part):
        return []

    def mean(values: Tensor) -> Score:
        rng = keyed_generator(seed, "reranking")
        return bootstrap_mean(per_caption(samples, part, values), rng)

    return [
        Reranked(
            best_of=rung.best_of,
            exact_match=proportion(per_caption(samples, part, rung.exact).clamp(0.0, 1.0).tolist()),
            clip_score=mean(100.0 * rung.score),
        )
        for rung in rerank(exact, samples.scores)
    ]
