"""The section on CLIP embeddings and edits: tables of their metrics, and the grids of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.metrics.intervals import Score
from launch.report.evaluations import Cell, Evaluation, cell, data_uri

COSINES = {
    "cosine_with_image": "cosine with the embedding of the caption's image",
    "cosine_gain": "difference of both",
    "nearer_than_caption": "captions whose generated embedding is the nearer one",
    "nearest_image": "the nearest of all images is the caption's",
}
EDITS = {
    "variation_keeps": "variations that keep it",
    "variation_keeps_by_chance": "an image drawn at random",
    "variation_is_nearest_to_its_source": "variations whose nearest image is the source",
    "levels_from_source": "mean difference from the source, levels of 255",
    "reconstruction_psnr": "inverted and generated again, dB",
    "text_diff_reaches": "text diffs whose nearest image is the target's, at the best theta",
    "best_theta": "best theta",
    "text_diff_by_theta": "text diffs at every theta",
}
IMAGIC = {
    "target_retrieved": "images that CLIP puts nearest to the target",
    "exact_match_with_target": "edits whose nearest image is the target's",
    "nearer_to_source_than_unedited": "edits nearer to the source than an unedited sample",
    "retrieved_and_nearer": "both",
    "distance_from_source": "distance from the source, in features",
}
_PERCENT = frozenset(
    {
        "nearer_than_caption", "nearest_image", "variation_keeps", "variation_keeps_by_chance",
        "variation_is_nearest_to_its_source", "text_diff_reaches", "text_diff_by_theta",
        "target_retrieved", "exact_match_with_target", "nearer_to_source_than_unedited",
        "retrieved_and_nearer",
    }
)  # fmt: skip


@dataclass(frozen=True)
class MetricTable:
    """One evaluation: a row per metric and group; `grids` are names and data URIs."""

    evaluation: Evaluation
    rows: Sequence[tuple[str, str, Cell]]
    grids: Sequence[tuple[str, str]]


def prior_table(evaluation: Evaluation) -> MetricTable:
    """The table of one evaluated prior."""
    return _table(evaluation, COSINES)


def edits_table(evaluation: Evaluation) -> MetricTable:
    """The table of one system's edits, with its grids."""
    return _table(evaluation, EDITS)


def imagic_table(evaluation: Evaluation) -> MetricTable:
    """The table of the edits of Imagic, with their grid."""
    return _table(evaluation, IMAGIC)


def _table(evaluation: Evaluation, labels: Mapping[str, str]) -> MetricTable:
    metrics = evaluation.result.metrics
    rows = [
        (label, group, found)
        for name, label in labels.items()
        for group in metrics.get(name, {})
        if (found := _cell(evaluation, name, group)) is not None
    ]
    files = sorted(path.name for path in evaluation.directory.glob("grid_*.png"))
    grids = [(name, uri) for name in files if (uri := data_uri(evaluation.directory, name))]
    return MetricTable(evaluation, rows, grids)


def _cell(evaluation: Evaluation, name: str, group: str) -> Cell | None:
    metric = evaluation.metric(name, group)
    if name.startswith(("cosine", "distance")) and isinstance(metric, Score):
        detail = f"{metric.low:.3f} to {metric.high:.3f}, n = {metric.n}"
        return Cell(f"{metric.value:.3f}", detail)
    return cell(metric, percent=name in _PERCENT)
