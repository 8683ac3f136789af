"""The captions of a recipe that its text encoders cut."""

import logging

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset
from data_pipeline.geometry.sides import SideCaptions
from data_pipeline.text.cut_captions import (
    CaptionLimit,
    CutCaptions,
    count_cut,
    sampled_captions,
)
from data_pipeline.text.t5_tokenizer import tokenizer_of
from data_pipeline.text.tokenizer import Tokenizer, TokenizerAt
from mezzotint.common.errors import UserError
from models import frozen_text
from trainer.recipe import Recipe
from trainer.tasks.frozen_text import text_encoder_of

log = logging.getLogger(__name__)

WARNED = 0.01
"""Share of captions above which training says so."""


def caption_limits(recipe: Recipe) -> dict[str, CaptionLimit]:
    """What cuts the captions of a recipe, by key; empty where it reads none.

    Raises:
        UserError: a tokenizer is missing.
    """
    found: dict[str, CaptionLimit] = {}
    text, source = recipe.data.text, text_encoder_of(recipe.task)
    if text is not None and text.tokenizer is not None and text.length is not None:
        found["data.text"] = TokenizerAt(Tokenizer.load(text.tokenizer), text.length)
    if source is not None:
        encoder = frozen_text.load_tokens(source, tokenizer_of)
        found["task.condition.encoder"] = encoder
    return found


def cut_captions(recipe: Recipe, dataset: Dataset) -> list[CutCaptions]:
    """Count them over a sample of the set's captions.

    Raises:
        UserError: a tokenizer or a shard is missing.
    """
    limits = caption_limits(recipe)
    captions = sampled_captions(dataset) if limits else []
    return [count_cut(captions, limit, key) for key, limit in limits.items()]


def side_captions(data: DataConfig, dataset: Dataset) -> SideCaptions | None:
    """Those of a sample of the set's captions that name a side, where that matters to flips."""
    return SideCaptions.count(sampled_captions(dataset)) if data.guards_flips else None


def log_cut_captions(recipe: Recipe, dataset: Dataset) -> None:
    """Warn where more than one caption in a hundred is cut; say how many keep from mirroring."""
    try:
        counts = cut_captions(recipe, dataset)
        sides = side_captions(recipe.data, dataset)
    except UserError as error:  # training itself says what it cannot do without
        log.warning("captions were not counted: %s", error)
        return
    for count in counts:
        if count.share > WARNED:
            log.warning("%s; raise its length, or shorten them", count.to_text())
    if sides is not None:
        log.info("%s", sides.to_text())
