"""The result of an evaluation: numbers that never travel without their protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.metrics.intervals import Score
from mezzotint.common.files import write_json, write_text

FILE = "evaluation.json"
Scores = Mapping[str, Score]
"""One score per part of the reference set: the split's name for held-out captions, and `train`."""


@dataclass(frozen=True)
class Frechet:
    """A Fréchet distance, the sizes of both sets, and what to know about it."""

    value: float
    images: int
    reference_images: int
    dimensions: int
    against: str
    caution: str | None

    def to_json(self) -> dict[str, object]:
        """Plain values for evaluation.json."""
        return dict(vars(self))


@dataclass(frozen=True)
class ClipScores:
    """Mean CLIP scores of the samples, of the same samples under shuffled captions, and of the
    real images: the middle one is what a picture of anything gets, the last what the model grants
    to perfection.
    """

    samples: Scores
    shuffled_captions: Scores
    real_images: Scores


@dataclass(frozen=True)
class Reranked:
    """Exact match, and CLIP score by the ranker, of the best of N candidates on held-out captions.

    Both are means over all subsets of N of the candidates that were drawn.
    """

    best_of: int
    exact_match: Score
    clip_score: Score


@dataclass(frozen=True)
class Evaluation:
    """Everything that evaluation.json holds."""

    name: str
    system: str
    protocol: Mapping[str, object]
    held_out: str
    exact_match: Scores
    exact_match_real_images: Scores
    exact_match_shuffled_captions: Scores
    clip_retrieval: Scores
    clip_retrieval_real_images: Scores
    clip_score: ClipScores
    frechet: Mapping[str, Frechet]
    """`samples`, and as a scale for it `real_train`: as many real training images."""
    frechet_metric: str
    reranking: Sequence[Reranked] = field(default_factory=tuple)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The tree of evaluation.json."""
        distances = {name: distance.to_json() for name, distance in self.frechet.items()}
        return {
            "name": self.name,
            "system": self.system,
            "held_out": self.held_out,
            "protocol": dict(self.protocol),
            "exact_match": plain(self.exact_match),
            "exact_match_real_images": plain(self.exact_match_real_images),
            "exact_match_shuffled_captions": plain(self.exact_match_shuffled_captions),
            "clip_retrieval": plain(self.clip_retrieval),
            "clip_retrieval_real_images": plain(self.clip_retrieval_real_images),
            "clip_score": {
                **plain(self.clip_score.samples),
                "clip": self.protocol.get("clip"),
                "shuffled_captions": plain(self.clip_score.shuffled_captions),
                "real_images": plain(self.clip_score.real_images),
            },
            self.frechet_metric: {
                **distances.pop("samples", {}),
                "baselines": distances,
                "shuffled_captions": "the distance compares sets of images and sees no captions: "
                "shuffling them changes nothing",
            },
            "reranking": [
                {
                    "best_of": row.best_of,
                    "exact_match": row.exact_match.to_json(),
                    "clip_score": row.clip_score.to_json(),
                }
                for row in self.reranking
            ],
            "seconds": {stage: round(value, 1) for stage, value in self.seconds.items()},
        }

    def write(self, directory: Path) -> None:
        """Write evaluation.json, whole or not at all, and its summary report.md."""
        write_text(directory / "report.md", self.to_markdown())
        write_json(directory / FILE, self.to_json())

    def to_markdown(self) -> str:
        """A summary for people, one line per figure."""
        parts = list(self.exact_match)
        lines = [f"# {self.name} ({self.system})", "", "| | " + " | ".join(parts) + " |"]
        lines.append("|---" * (len(parts) + 1) + "|")
        rows: list[tuple[str, Scores, float]] = [
            ("exact match", self.exact_match, 100.0),
            ("exact match against real images", self.exact_match_real_images, 100.0),
            ("exact match, captions shuffled", self.exact_match_shuffled_captions, 100.0),
            ("CLIP retrieval", self.clip_retrieval, 100.0),
            ("CLIP retrieval of the real images", self.clip_retrieval_real_images, 100.0),
            ("CLIP score", self.clip_score.samples, 1.0),
            ("CLIP score, captions shuffled", self.clip_score.shuffled_captions, 1.0),
            ("CLIP score of the real images", self.clip_score.real_images, 1.0),
        ]
        for label, scores, scale in rows:
            cells = [_cell(scores[part], scale) if part in scores else "–" for part in parts]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        for name, distance in self.frechet.items():
            lines += ["", f"{self.frechet_metric}, {name}: {distance.value:.3f} "]
            lines[-1] += f"({distance.images} images against {distance.reference_images})"
            lines[-1] += f". Caution: {distance.caution}." if distance.caution else "."
        for row in self.reranking:
            match, score = _cell(row.exact_match, 100.0), _cell(row.clip_score, 1.0)
            lines += ["", f"Best of {row.best_of}: exact match {match}, CLIP score {score}."]
        return "\n".join(lines) + "\n"


def plain(scores: Scores) -> dict[str, object]:
    """Scores as plain values."""
    return {part: score.to_json() for part, score in scores.items()}


def _cell(score: Score, scale: float) -> str:
    value, low, high = (scale * x for x in (score.value, score.low, score.high))
    unit = "%" if scale == 100.0 else ""
    return f"{value:.1f}{unit} [{low:.1f}, {high:.1f}], n = {score.n}"
