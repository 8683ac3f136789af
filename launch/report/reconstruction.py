"""The section on autoencoders: what they reconstruct, and at what rate."""

from dataclasses import dataclass

from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score
from evaluation.reconstruction import GRID
from evaluation.result import Metric
from launch.report.evaluations import Evaluation, data_uri


@dataclass(frozen=True)
class Reconstruction:
    """One row of the table, and the grid of images as a data URI."""

    name: str
    kind: object
    psnr: str
    ssim: str
    distance: str
    codebooks: str
    rate: str
    grid: str | None


def reconstruction_row(evaluation: Evaluation) -> Reconstruction:
    """The row of one evaluated autoencoder."""
    metrics = evaluation.result.metrics
    distances = [
        f"{name.removeprefix('reconstruction_')} {metric.value:.1f}, n = {metric.images}"
        for name, groups in metrics.items()
        for metric in groups.values()
        if isinstance(metric, FrechetDistance)
    ]
    codebooks = [
        f"{name}: {evaluation.metric('codes_used', name):g} of {size:g} codes used, "
        f"perplexity {evaluation.metric('code_perplexity', name):.0f}"
        for name, size in metrics.get("codebook_size", {}).items()
    ]
    rate = evaluation.metric("bits_per_pixel", "total")
    part = str(evaluation.setting("images", "part"))
    return Reconstruction(
        name=evaluation.result.name,
        kind=evaluation.setting("autoencoder", "kind"),
        psnr=f"{_interval(evaluation.metric('psnr', part), 1)} dB",
        ssim=_interval(evaluation.metric("ssim", part), 3),
        distance="; ".join(distances) or "not measured",
        codebooks="; ".join(codebooks) or "no codes",
        rate="no rate" if rate is None else f"{rate:.2f} bits per pixel",
        grid=data_uri(evaluation.directory, GRID),
    )


def _interval(score: Metric | None, digits: int) -> str:
    if not isinstance(score, Score):
        return "not measured"
    value, low, high = (f"{each:.{digits}f}" for each in (score.value, score.low, score.high))
    return f"{value} ({low} to {high})"
