"""Where all samples of an epoch go, and what is cut off them."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.buckets.assignment import BucketUse
from data_pipeline.buckets.order import BucketOrder
from data_pipeline.dataset import Dataset
from data_pipeline.sample_order import EpochOrder


@dataclass(frozen=True)
class BucketRow:
    """A bucket in an epoch."""

    use: BucketUse
    elsewhere: int
    """Samples that are read in the shape of another bucket."""


@dataclass(frozen=True)
class BucketAccount:
    """The buckets of an epoch, whose samples are all those of the set."""

    rows: Sequence[BucketRow]
    fit: str

    def to_text(self) -> list[str]:
        """A table, a line each."""
        samples = sum(row.use.samples for row in self.rows)
        elsewhere = sum(row.elsewhere for row in self.rows)
        lines = [
            f"buckets: {samples:,} samples, each read once an epoch, of which {elsewhere:,} in the "
            "first one in the shape of another bucket",
            f"  {'shape':>11}  {'samples':>11}  {'elsewhere':>9}  "
            f"{'cut off' if self.fit == 'crop' else 'padding'}",
        ]
        for row in self.rows:
            shape = f"{row.use.shape.width} x {row.use.shape.height}"
            lines.append(
                f"  {shape:>11}  {row.use.samples:>11,}  {row.elsewhere:>9,}  "
                f"{row.use.cut_off:>7.1%}"
            )
        return lines


def bucket_account(dataset: Dataset, batch: int, seed: int) -> BucketAccount:
    """Of the first epoch, in global batches of `batch`."""
    buckets, image = dataset.buckets, dataset.config.image
    assert buckets is not None, "data.image.buckets is set"
    assert image is not None, "its buckets are set"
    sizes, block = dataset.shard_sizes, dataset.config.shuffle_block
    order = BucketOrder(
        buckets.counts,
        buckets.of,
        batch,
        buckets.window,
        lambda epoch: EpochOrder(sizes, seed, epoch, block),
    )
    elsewhere = order.epoch(0).elsewhere.tolist()
    rows = [BucketRow(*pair) for pair in zip(buckets.uses(), elsewhere, strict=True)]
    return BucketAccount(rows, image.fit)
