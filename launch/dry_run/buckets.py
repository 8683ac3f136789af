"""The aspect-ratio buckets of a recipe, where its set is at hand."""

from dataclasses import dataclass

from data_pipeline.buckets.account import BucketAccount, bucket_account
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from trainer.recipe import Recipe


@dataclass(frozen=True)
class BucketCounts:
    """The buckets, or why they are not counted; neither without any."""

    account: BucketAccount | None = None
    not_counted: str | None = None

    def to_text(self) -> list[str]:
        if self.account is not None:
            return self.account.to_text()
        return [f"buckets: not counted ({self.not_counted})"] if self.not_counted else []


def bucket_counts(recipe: Recipe) -> BucketCounts:
    """Every bucket with its samples and what is cut off them; nothing is fetched."""
    data = recipe.data
    if data.image is None or data.image.buckets is None:
        return BucketCounts()
    if not storage.is_local(data.url):
        return BucketCounts(not_counted=f"{data.url} is not on this machine")
    try:
        # the images alone: what is missing besides them is said by training
        images = DataConfig(
            url=data.url,
            join=data.join,
            select=data.select,
            image=data.image,
            shuffle_block=data.shuffle_block,
            cache=data.cache,
        )
        account = bucket_account(open_dataset(images), recipe.batch, recipe.seed)
        return BucketCounts(account)
    except UserError as error:
        return BucketCounts(not_counted=str(error).splitlines()[0])
