"""Options of `mezzotint data pack`."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from data_pipeline.config import HintName, Selection
from data_pipeline.manifest import FileName
from data_pipeline.sets.split_rule import HashedPart, SplitRule


class PackOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of `pack`."""

    name: FileName | None = None
    """Of the new set; default: that of a source that is a set, else `images`."""
    licence: str | None = None
    """Of the data; default: that of a source that is a set, else `unknown`."""
    select: tuple[Selection, ...] = ()
    """Samples of a source that is a set; empty: all."""
    limit: int | None = Field(default=None, gt=0)
    """Maximum number of samples: those whose names have the smallest SHA-256, so that a smaller
    limit gives a subset and the order of the source has no influence."""
    read: Literal["images", "tars"] | None = None
    """What to read of a folder that holds both."""
    image_column: str = "image"
    caption_column: str = "caption"
    attribute_columns: tuple[str, ...] = ()
    """Table columns to select by."""
    hint_columns: Mapping[HintName, Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """Columns with images that are hints, by the name of the hint; of a folder or tar the word
    before the last dot in the names of their files: `a.edges.png` beside `a.png`."""
    folder_attribute: str | None = Field(default=None, min_length=1)
    """Name of an attribute that is the name of the folder that holds the image."""
    folder_caption: bool = False
    """The name of the folder is the caption of images without a caption file."""
    caption_lines: Literal["several", "one", "first"] = "several"
    """Several lines of a caption file, or texts of a cell, are several captions, one, or one and
    others that are left out (translations, for instance)."""
    shard_size: int = Field(default=1000, gt=0)
    workers: int = Field(default=8, gt=0)
    """Pairs of a shard that are read in parallel."""
    processes: int | None = Field(default=None, gt=0)
    """Shards of new pairs that are written in parallel; None: one for every core, and at least 4
    shards for each."""
    part: tuple[int, int] | None = None
    """(i, n): of these, every n-th shard from the i-th on, which is one of 1 to n; the set is
    finished by a call without it."""
    test_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of the captions (by hash) that a split named `random` holds out. What shares an
    image or a caption stays together, unless `split_by` is set."""
    split_by: HashedPart | None = None
    """What of each sample is hashed for that split; None: captions, and what shares an image or a
    caption stays together, for which all samples are held in memory."""
    max_pixels: int = Field(default=50_000_000, gt=0, le=178_000_000)
    min_size: int = Field(default=1, gt=0)
    """Of the shorter side, in pixels."""
    max_aspect: float | None = Field(default=None, ge=1.0)
    """Of the longer to the shorter side."""
    image_sizes: bool = False
    """Keep width and height of the upright image as attributes, for aspect-ratio buckets."""
    compress: bool = False
    update: bool = False
    """Remove samples of a finished set that the source no longer has, or take another source."""

    @property
    def set_name(self) -> str:
        return self.name or "images"

    @property
    def split_rule(self) -> SplitRule | None:
        """None: the split is not made by a rule."""
        if self.split_by is None or not self.test_fraction:
            return None
        return SplitRule(by=self.split_by, fraction=self.test_fraction)
