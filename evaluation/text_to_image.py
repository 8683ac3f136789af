"""One evaluation from model directories to evaluation.json."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from data_pipeline.image_grid import GridCell, image_grid, in_columns
from evaluation import reference, samples
from evaluation.config import EvaluationConfig
from evaluation.metrics import clip_score, text_to_image
from evaluation.metrics.text_to_image import Embedder, ExactMatches
from evaluation.reference import Reference
from evaluation.report import Evaluation
from evaluation.samples import Row, SampleSet
from mezzotint.common.errors import UserError
from mezzotint.inference.build import build_system
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.generator import System

Progress = Callable[[str, int, int], None]


def evaluate(
    config: EvaluationConfig, out: str | Path, progress: Progress | None = None
) -> Evaluation:
    """Draw with a system and judge what it drew.

    Writes `samples/`, `real/`, `candidates/`, `samples.jsonl`, `grid_*.png`, `report.md` and, last
    and atomically, `evaluation.json` into the directory `out`.

    Raises:
        UserError: something that is read is missing or does not fit.
    """
    system = build_system(config.system, config.precision)
    clip = ClipEmbedder.load(config.clip)
    return judge_system(config, system, clip, Path(out), progress or (lambda *_: None))


def judge_system(
    config: EvaluationConfig, system: System, clip: Embedder, out: Path, progress: Progress
) -> Evaluation:
    """Draw with any system and judge it; `evaluate` builds system and CLIP from disk."""
    clock = Clock()
    with clock.measure("reference"):
        real = reference.load(config.reference, system.image_size, phase(progress, "reference"))
    refuse_too_many_choices(config.retrieval_choices, real)
    rows = questions(config, real)
    with clock.measure("draw"):
        drawn = samples.draw(
            system, rows, seed=config.seed, batch=config.batch, progress=phase(progress, "draw")
        )
    with clock.measure("exact_match"):
        exact = text_to_image.exact_matches(drawn, real, system.reconstruct, config.seed)
    out.mkdir(parents=True, exist_ok=True)
    samples.write(drawn, out, dict(zip(real.keys, real.pictures, strict=True)), exact.nearest)
    with clock.measure("clip"):
        clipped = text_to_image.clip_judgement(
            drawn, real, clip, choices=config.retrieval_choices, seed=config.seed
        )
    network = config.features.build()
    with clock.measure("features"):
        distances = text_to_image.frechet(
            drawn, real, network, config.seed, phase(progress, "features")
        )
    evaluation = Evaluation(
        name=config.name,
        system=config.system.kind,
        held_out=real.held_out,
        protocol={
            **sampling_protocol(config, system, drawn),
            "reference": reference_protocol(config, system, real),
            "exact_match": exact_match_rule(exact),
            "clip": clip.protocol(),
            "clip_score": clip_score.DEFINITION,
            "clip_retrieval": f"own caption above {config.retrieval_choices - 1} wrong captions",
            "features": {"metric": network.metric, **network.protocol()},
            "intervals": "95% over captions; Wilson for shares, bootstrap for means",
        },
        exact_match=text_to_image.shares(drawn, exact.chosen),
        exact_match_real_images=text_to_image.shares(drawn, exact.real_images),
        exact_match_shuffled_captions=text_to_image.shares(drawn, exact.shuffled_captions),
        clip_retrieval=clipped.retrieval,
        clip_retrieval_real_images=clipped.retrieval_real_images,
        clip_score=clipped.scores,
        frechet=distances,
        frechet_metric=network.metric,
        reranking=text_to_image.reranked(drawn, exact.every, real.held_out, config.seed),
        seconds=clock.seconds,
    )
    write_sheets(config, drawn, real, exact.chosen, out)
    evaluation.write(out)
    return evaluation


def refuse_too_many_choices(choices: int, real: Reference) -> None:
    """Before anything is drawn: every picture needs `choices` - 1 captions that are wrong for it.

    Raises:
        UserError: the split has fewer.
    """
    most_right = max(len(captions) for captions in real.captions_of_identical_pictures())
    wrong = len(set(real.captions)) - most_right
    if wrong < choices - 1:
        raise UserError(
            f"retrieval_choices: {choices} captions are wanted, but split {real.held_out} has "
            f"{wrong} wrong ones for some pictures; set it to at most {wrong + 1}"
        )


def sampling_protocol(
    config: EvaluationConfig, system: System, drawn: SampleSet
) -> dict[str, object]:
    """How the samples came to be."""
    parts = dict.fromkeys(row.part for row in drawn.rows)
    return {
        "images": {part: len(drawn.of(part)) for part in parts},
        "samples_per_caption": config.samples_per_caption,
        "seed": config.seed,
        "batch": config.batch,
        "randomness": "one generator per batch, keyed by (seed, key and repeat of its rows)",
        "system": system.protocol(),
    }


def reference_protocol(
    config: EvaluationConfig, system: System, real: Reference
) -> dict[str, object]:
    """What the samples were compared with."""
    return {
        "split": real.held_out,
        "fingerprint": real.fingerprint,
        "images": len(real.keys),
        "image_size": system.image_size,
        "fit": config.reference.fit,
        "filter": config.reference.filter,
    }


def exact_match_rule(exact: ExactMatches) -> str:
    """The rule of the exact match in words."""
    targets = "reconstructions of real images" if exact.reconstructs else "real images"
    return (
        f"nearest by squared difference of 8-bit pixels among the {exact.distinct_candidates} "
        f"distinct {targets} of the split, held-out and training; of pixel-identical ones any "
        "caption counts"
    )


def questions(config: EvaluationConfig, real: Reference) -> list[Row]:
    """The rows to draw: the chosen captions of both parts, each as often as configured."""
    rows = []
    limits = {real.held_out: config.limit.test, "train": config.limit.train}
    for part, limit in limits.items():
        places = real.indices(part)
        for chosen in samples.choose([real.keys[place] for place in places], limit, config.seed):
            place = places[chosen]
            rows += [
                Row(part, real.keys[place], real.captions[place], repeat)
                for repeat in range(config.samples_per_caption)
            ]
    return rows


def write_sheets(
    config: EvaluationConfig, drawn: SampleSet, real: Reference, exact: Tensor, out: Path
) -> None:
    """`grid_PART.png` with sample beside real image, and `grid_candidates.png` if ranked."""
    place = {key: index for index, key in enumerate(real.keys)}
    chosen = drawn.chosen
    for part, words in ((real.held_out, "never seen in training"), ("train", "training captions")):
        shown = drawn.of(part)[: config.shown]
        if not shown:
            continue
        cells = [
            GridCell(
                [[chosen[index], real.pictures[place[drawn.rows[index].key]]]],
                drawn.rows[index].caption,
                bool(exact[index]),
            )
            for index in shown
        ]
        grid = image_grid(
            in_columns(cells, 4), title=f"{config.name}: {words}", image_labels=("sample", "real")
        )
        grid.save(out / f"grid_{'train' if part == 'train' else 'held_out'}.png")
    if drawn.scores is not None and drawn.pictures.shape[1] > 1:
        write_candidate_sheet(config, drawn, drawn.of(real.held_out)[:8], out)


def write_candidate_sheet(
    config: EvaluationConfig, drawn: SampleSet, rows: Sequence[int], out: Path
) -> None:
    """All candidates of a few captions, best-ranked first."""
    if drawn.scores is None or not rows:
        return
    order = drawn.scores.argsort(dim=1, descending=True, stable=True)
    cells = [
        [GridCell(drawn.pictures[index][order[index]][None], drawn.rows[index].caption)]
        for index in rows
    ]
    title = f"{config.name}: candidates, ranked by CLIP from left to right"
    image_grid(cells, title=title, image_labels=("best",)).save(out / "grid_candidates.png")


def phase(progress: Progress, name: str) -> Callable[[int, int], None]:
    """A progress callback of one phase."""
    return lambda done, total: progress(name, done, total)


class Clock:
    """Seconds spent per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time the body."""
        start = time.monotonic()
        yield
        self.seconds[stage] = time.monotonic() - start
