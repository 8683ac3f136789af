"""A recipe's data settings. Imports nothing heavier than pydantic."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from data_pipeline.geometry.config import BucketConfig, CropConfig
from data_pipeline.geometry.frame import Shape, View
from data_pipeline.geometry.sides import names_side
from mezzotint.common.preprocessing import Filter, Fit, Preprocessing
from mezzotint.common.storage_errors import check_no_credentials
from mezzotint.common.text_features import CAPTION_ARRAYS

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
"""A name usable as a webdataset member extension."""

HINT_NAME = r"^[a-z][a-z0-9_]*$"
HintName = Annotated[str, Field(pattern=HINT_NAME)]
"""The name of a hint: `edges` of the member `KEY.edges.png`."""

Location = Annotated[str, Field(min_length=1), AfterValidator(check_no_credentials)]
"""A local path or any fsspec URL. Endpoint and credentials come from the environment alone."""


WithCaptions = bool | Literal["guarded"]


class ImageConfig(BaseModel, frozen=True, extra="forbid"):
    """How an image becomes a square of `size` x `size` pixels on white.

    `pad` pads it to a square, `crop` takes the central square. `filter` is Pillow's antialiased
    resampling filter.
    """

    size: int = Field(gt=0, le=8192)
    fit: Fit = "pad"
    filter: Filter = "bicubic"
    crop: CropConfig | None = None
    """Which part training reads, with `fit: crop`. None: the centre, as everything else reads."""
    buckets: BucketConfig | None = None
    """Training reads images in shapes near to their own; everything else reads squares."""
    flip: bool = False
    """Mirror a sample, and its hint, with probability 1/2, keyed by (seed, epoch, sample).
    Training only."""
    flip_with_captions: WithCaptions = False
    """Mirror although captions, which may say left or right, are read with the images: all of
    them, or with `guarded` those whose caption names no side in English."""
    flip_with_labels: bool = False
    """Mirror although a class is called left or right."""
    max_pixels: int = Field(default=50_000_000, gt=0, le=178_000_000)
    """Larger images are refused from their header. The maximum is Pillow's own limit."""
    scaled_decoding: bool = False
    """Decode a large JPEG at a fraction of its size, at least twice `size`, and resize that:
    faster, with other values than of the whole image (docs/data.md says by how much)."""

    @model_validator(mode="after")
    def _flips(self) -> Self:
        if (self.flip_with_captions or self.flip_with_labels) and not self.flip:
            raise ValueError("flip_with_captions and flip_with_labels need flip: true")
        return self

    @model_validator(mode="after")
    def _buckets_are_of_whole_sides(self) -> Self:
        if self.buckets is not None and self.size % self.buckets.multiple:
            raise ValueError(
                f"buckets.multiple {self.buckets.multiple} does not divide size {self.size}"
            )
        return self

    @model_validator(mode="after")
    def _crop_is_cut(self) -> Self:
        if self.crop is not None and self.fit != "crop":
            raise ValueError("crop needs fit: crop")
        return self

    @property
    def view(self) -> View:
        """Of everything but training."""
        return View(Shape(self.size, self.size), self.fit)

    @property
    def preprocessing(self) -> Preprocessing:
        """What a model that is trained on these images records."""
        return Preprocessing(size=self.size, fit=self.fit, filter=self.filter, flip=self.flip)


CaptionChoice = Literal["random", "first", "joined"]


class TextConfig(BaseModel, frozen=True, extra="forbid"):
    """Which caption of a sample is read, and how it becomes `length` token ids.

    Without `tokenizer` and `length` there are no token ids, as a frozen text encoder needs none.
    """

    tokenizer: Location | None = None
    """`tokenizer.model` or a directory that holds it; local or any fsspec URL."""
    length: int | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """BPE dropout probability (Provilkov et al. 2020). Training only."""
    captions: CaptionChoice = "random"
    """Of a sample with several captions training reads one, keyed by (seed, epoch, sample), the
    first, or all of them joined by spaces. Everything but training reads the first one, or with
    `joined` all."""

    @model_validator(mode="after")
    def _tokenizer_with_length(self) -> Self:
        if (self.tokenizer is None) != (self.length is None):
            raise ValueError("set tokenizer and length, or neither of them")
        if self.dropout and self.tokenizer is None:
            raise ValueError("dropout needs a tokenizer")
        return self


class LabelConfig(BaseModel, frozen=True, extra="forbid"):
    """How a sample attribute becomes a class, 0 to `count` - 1.

    Either `values` are the attribute's values in the order of their classes, or the attribute is
    itself an integer below `classes`.
    """

    attribute: str
    values: tuple[str | int, ...] | None = Field(default=None, min_length=1)
    classes: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.values is None) == (self.classes is None):
            raise ValueError("set either values or classes")
        if self.values is not None and len(set(self.values)) < len(self.values):
            raise ValueError("values holds a value more than once")
        return self

    @property
    def sides(self) -> tuple[str, ...]:
        """The values that name a side, which a mirrored image does not show."""
        return tuple(str(value) for value in self.values or () if names_side(str(value)))

    @property
    def count(self) -> int:
        if self.values is not None:
            return len(self.values)
        assert self.classes is not None
        return self.classes


class HintConfig(BaseModel, frozen=True, extra="forbid"):
    """Which member of a sample is its hint, the image that a control is given.

    It is the image `KEY.NAME.png` (jpg, webp) of 1 or 3 channels, or the array `KEY.NAME.npy`
    (channels, H, W) of values in [0, 1], uint8 of 0 to 255.
    """

    name: HintName
    channels: int = Field(default=1, gt=0, le=64)
    size: int | None = Field(default=None, gt=0, le=8192)
    """Side of the hint in pixels, which is that of the generated images. None: as `data.image`, or
    where there is none, as the images that the set was encoded from."""


class Selection(BaseModel, frozen=True, extra="forbid"):
    """One part of one split, filtered by sample attributes.

    `where` keeps the samples whose attribute is one of the listed values, for every attribute
    named: `{"group": ["animals-nature", "food-drink"], "tone": ["none"]}`.
    """

    split: str
    part: Literal["train", "test"]
    where: dict[str, tuple[str | int, ...]] = {}
    within: dict[str, Literal["train", "test"]] = {}
    """The part of further splits that samples must be in, for instance {"deduplicated": "train"}.
    """


class DataConfig(BaseModel, frozen=True, extra="forbid"):
    """A shard set and what to read of each of its samples."""

    url: Location
    """Directory of the set (with `manifest.json`): a local path or any fsspec URL."""
    join: tuple[Location, ...] = ()
    """Further sets that hold the same keys; their images, arrays and hints complete the samples of
    `url`."""
    select: tuple[Selection, ...] = ()
    """The union of these selections; empty: all samples."""
    image: ImageConfig | None = None
    text: TextConfig | None = None
    label: LabelConfig | None = None
    arrays: tuple[Identifier, ...] = ()
    """Array members of a derived set, for instance `codes` for `KEY.codes.npy`."""
    hint: HintConfig | None = None
    """The image that a control is given; its set may be one of those of `data.join`."""
    encoder: Location | None = None
    """The model directory, or its digest, that must have encoded a derived set."""
    flip_arrays: bool = False
    """Read the arrays of the mirrored image, which `mezzotint data derive --flip` writes, with
    probability 1/2, keyed by (seed, epoch, sample); the image and the hint of such a sample are
    mirrored too. Training only."""
    flip_with_captions: WithCaptions = False
    """As in `image`, for `flip_arrays`."""
    flip_with_labels: bool = False
    """As in `image`, for `flip_arrays`."""
    force_preprocessing: bool = False
    """Take images prepared otherwise than a model's own: of a derived set whose encoder was trained
    otherwise, or to encode them with a model that was."""
    shuffle_block: int = Field(default=8, gt=0)
    """Shards per block within which samples are shuffled; the cache must hold two blocks of each
    lane."""
    lanes: int = Field(default=1, gt=0, le=4096)
    """Equal parts of the set that are read side by side: every batch takes as many samples of each,
    and a process reads whole ones, so that a node fetches their shards alone. The order depends on
    the number of lanes, not on that of processes, which must divide it."""
    workers: int = Field(default=0, ge=0)
    """Decoding processes; 0: a background thread. The batches are the same."""
    max_damaged: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The largest share of damaged samples, those that do not decode, among all that training has
    read; another sample of the same shard takes the place of each. 0: the first one ends it."""
    cache_in_memory: bool = False
    """Keep decoded and resized images in RAM (uint8); needs workers = 0."""
    cache: str | None = None
    """Directory on this node for remote shards. Default: MEZZOTINT_CACHE, then ~/.cache."""

    @model_validator(mode="after")
    def _memory_cache_needs_one_process(self) -> Self:
        if self.cache_in_memory and self.workers:
            raise ValueError("cache_in_memory caches in this process: set workers to 0")
        return self

    @model_validator(mode="after")
    def _what_a_crop_breaks(self) -> Self:
        image = self.image
        if image is None or not (image.crop or image.buckets):
            return self
        name = "image.crop" if image.crop else "image.buckets"
        if self.cache_in_memory:
            raise ValueError(f"cache_in_memory keeps one form of an image: leave {name} out")
        if self.hint is not None:
            raise ValueError(f"{name} cuts images, but not hints: leave {name} or hint out")
        if image.buckets and self.lanes > 1:
            raise ValueError(
                "image.buckets fills batches from the whole set, and lanes keep its parts apart: "
                "set lanes to 1, or leave image.buckets out"
            )
        return self

    @model_validator(mode="after")
    def _what_a_flip_breaks(self) -> Self:
        if (self.flip_with_captions or self.flip_with_labels) and not self.flip_arrays:
            raise ValueError("flip_with_captions and flip_with_labels need flip_arrays: true")
        if self.text is not None and self.text.tokenizer is not None:
            self.check_flipped_captions()
        self.check_flipped_arrays()
        if self.label is not None and self.label.sides:
            key = self._unforced_flip("with_labels")
            if key is not None:
                raise ValueError(
                    f"{key} mirrors images, and data.label.values has '{self.label.sides[0]}'; set "
                    f"{key}=false, or {self._forcing(key, 'with_labels')}=true to mirror them still"
                )
        return self

    @property
    def flips(self) -> bool:
        """Whether training mirrors samples."""
        return self.flip_arrays or (self.image is not None and self.image.flip)

    @property
    def guards_flips(self) -> bool:
        """Whether samples stay as they are whose caption names a side."""
        of_images = self.image is not None and self.image.flip_with_captions == "guarded"
        return of_images or self.flip_with_captions == "guarded"

    def check_flipped_captions(self) -> None:
        """Refuse to mirror images that are trained with their captions, unless it is forced.

        Raises:
            ValueError: with the key that forces it.
        """
        key = self._unforced_flip("with_captions")
        if key is not None:
            raise ValueError(
                f"{key} mirrors images, and their captions may say left or right; set "
                f"{key}=false, or {self._forcing(key, 'with_captions')}=guarded to mirror those "
                "whose captions name no side, or =true to mirror all"
            )

    def check_flipped_arrays(self) -> None:
        """Refuse to mirror or cut images beside arrays that would stay as they are.

        Raises:
            ValueError: with the arrays and the key that mirrors both.
        """
        fixed = [name for name in self.arrays if name not in CAPTION_ARRAYS]
        if self.image is not None and (self.image.crop or self.image.buckets) and fixed:
            key = "data.image.crop" if self.image.crop else "data.image.buckets"
            raise ValueError(
                f"{key} cuts images, but not {', '.join(fixed)} (data.arrays); leave {key} out"
            )
        if self.image is not None and self.image.flip and fixed:
            raise ValueError(
                f"data.image.flip mirrors images, but not {', '.join(fixed)} (data.arrays); set "
                "data.image.flip=false, and data.flip_arrays=true to mirror both (of a set "
                "derived with --flip)"
            )

    def _unforced_flip(self, what: str) -> str | None:
        """The key that mirrors samples, unless the one that `_forcing` names is set."""
        if self.flip_arrays and not getattr(self, f"flip_{what}"):
            return "data.flip_arrays"
        if self.image is not None and self.image.flip and not getattr(self.image, f"flip_{what}"):
            return "data.image.flip"
        return None

    @staticmethod
    def _forcing(key: str, what: str) -> str:
        return f"{key.removesuffix('_arrays')}_{what}"
