"""The captions of a recipe that are cut by its text encoders, or name a side, of a local set."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.config import DataConfig, TextConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.geometry.sides import SideCaptions
from data_pipeline.text.cut_captions import CutCaptions
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from trainer.caption_lengths import cut_captions, side_captions
from trainer.recipe import Recipe
from trainer.tasks.frozen_text import text_encoder_of


@dataclass(frozen=True)
class CaptionLengths:
    """Counts by text encoder, or why there are none."""

    counts: Sequence[CutCaptions] = ()
    not_counted: str | None = None
    sides: SideCaptions | None = None
    """Of a recipe that mirrors images unless their caption names a side."""

    def to_text(self) -> list[str]:
        lines = [count.to_text() for count in self.counts]
        if self.not_counted is not None:
            lines.append(f"not counted which of them are cut ({self.not_counted})")
        if self.sides is not None:
            lines.append(self.sides.to_text())
        return [f"captions: {line}" for line in lines]


def caption_lengths(recipe: Recipe) -> CaptionLengths:
    """Count the captions that are cut, over a sample of a local set; nothing is fetched."""
    data = recipe.data
    encoded = text_encoder_of(recipe.task) is not None
    encoded = encoded or (data.text is not None and data.text.tokenizer is not None)
    if not encoded and not data.guards_flips:
        return CaptionLengths()
    if not storage.is_local(data.url):
        return CaptionLengths(not_counted=f"{data.url} is not on this machine")
    sides = None
    try:
        # the captions alone: what is missing besides them is said by training
        text = None if data.text is None else TextConfig(captions=data.text.captions)
        captions = DataConfig(url=data.url, select=data.select, text=text, cache=data.cache)
        dataset = open_dataset(captions)
        sides = side_captions(data, dataset)
        return CaptionLengths(cut_captions(recipe, dataset), sides=sides)
    except UserError as error:
        return CaptionLengths(not_counted=str(error).splitlines()[0], sides=sides)
