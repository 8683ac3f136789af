"""A shard set as a sequence of samples with random access."""

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batch import Batch, Sample, collate
from data_pipeline.buckets.assignment import Buckets
from data_pipeline.cache import ShardCache, node_cache
from data_pipeline.config import CaptionChoice, DataConfig, ImageConfig
from data_pipeline.damage.errors import DamagedSampleError, decoding
from data_pipeline.geometry.frame import DRAWS, Shape, SizeCondition, View
from data_pipeline.geometry.sides import names_side
from data_pipeline.hints.member import HintMember, extension_of
from data_pipeline.images import IMAGE_EXTENSIONS, decode_view
from data_pipeline.joined import JoinedSample, JoinedSet, check_encoder
from data_pipeline.labels import Labels
from data_pipeline.manifest import Manifest, Part, SampleEntry
from data_pipeline.sample_order import crop_draws, sample_rng
from data_pipeline.selection import fingerprint, select
from data_pipeline.sets.required_members import RequiredMember, required_members
from data_pipeline.sets.stored_set import StoredSet, read_set
from data_pipeline.sets.survey import Survey
from data_pipeline.shards import ShardReader, check_sizes
from data_pipeline.text.cached_features import CachedTextFeatures, CaptionArrays
from data_pipeline.text.captions import caption_lines, choose, first
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.errors import UserError
from mezzotint.common.mirrored import mirrored


def open_dataset(config: DataConfig, *, expected_encoder: str | None = None) -> "Dataset":
    """Open a shard set and check shard sizes, selection, members and encoder.

    Digests are checked when a shard is first opened, and all of them by `mezzotint data verify`.

    `expected_encoder` is the digest of the model that must have encoded a derived set. Required if
    `config.encoder` is a model directory, which only the caller can resolve.

    Raises:
        UserError: The set is damaged, or it does not fit the settings.
    """
    stored = read_set(config.url)
    check_sizes(stored)
    text = config.text
    tokenizer = Tokenizer.load(text.tokenizer) if text and text.tokenizer else None
    dataset = Dataset(config, stored, node_cache(config.cache), tokenizer)
    check_encoder(config, dataset.manifests(), expected_encoder)
    return dataset


class Dataset:
    """The selected samples of a shard set, in the order of the manifest.

    A sample is a pure function of its index, in training of (index, seed, epoch). Thread-safe and
    picklable.
    """

    def __init__(
        self,
        config: DataConfig,
        stored: StoredSet,
        cache: ShardCache,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.config = config
        self.stored = stored
        self.manifest = stored.manifest
        self.reader = ShardReader(stored, cache)
        self.tokenizer = tokenizer
        survey = Survey(stored, cache.directory / "surveys")
        self._selected = select(survey, config.select)
        self.shard_sizes: tuple[int, ...] = tuple(self._selected.sizes.tolist())
        """Selected samples of each shard."""
        self._joined = [JoinedSet.open(url, stored, self._selected, cache) for url in config.join]
        self._last: tuple[int, _Located] | None = None
        self._choice: CaptionChoice = config.text.captions if config.text else "random"
        self.fingerprint = fingerprint(
            self.manifests(), self._selected, config.shuffle_block, config.lanes, self._choice
        )
        """Digest of sets, selection, shuffle block and choice of captions, which a stream's state
        refers to."""
        self.hint: HintMember | None = None
        """The member that is a sample's hint, if `data.hint` is set."""
        if config.hint is not None:
            self.hint = HintMember.of(config, self.manifest, self._holder(config.hint.name))
        sets = tuple(zip((config.url, *config.join), self.manifests(), strict=True))
        self._captions = CaptionArrays.of_sets(sets, config.arrays, self._choice)
        self._check_members(survey)
        self._labels = Labels(survey, self._selected, config.label) if config.label else None
        self._cached: dict[int, tuple[NDArray[np.uint8], SizeCondition]] = {}
        self.buckets: Buckets | None = None
        """If `data.image.buckets` is set."""
        if config.image is not None and config.image.buckets is not None:
            size, shapes = config.image.size, config.image.buckets
            self.buckets = Buckets(survey, self._selected, size, shapes)

    def __len__(self) -> int:
        return len(self._selected)

    @property
    def text_features(self) -> CachedTextFeatures | None:
        """What the set keeps besides text features, if `data.arrays` has those of captions."""
        return self._captions.features

    def keys(self) -> tuple[str, ...]:
        return tuple(self.entry(index).key for index in range(len(self)))

    def captions(self) -> tuple[str, ...]:
        """The first caption of every sample."""
        return tuple(self.caption(index) for index in range(len(self)))

    def all_captions(self) -> Iterator[str]:
        """Every caption of every sample."""
        for index in range(len(self)):
            yield from self.captions_of(index)

    def entry(self, index: int) -> SampleEntry:
        return self._locate(index).entry

    def parts(self, index: int) -> dict[str, Part]:
        """The part of each split that a sample is in."""
        shard, row = self._selected.locate(index)
        held = self.stored.indexes.of(shard)
        found = {name: held.part(name, row) for name in self.manifest.splits}
        return {name: part for name, part in found.items() if part is not None}

    def members(self, index: int) -> Collection[str]:
        """The extensions of a sample's members, those of joined sets included."""
        located = self._locate(index)
        if not located.joined:
            return located.entry.members
        entries = (located.entry, *(one.entry for one in located.joined))
        return {name for entry in entries for name in entry.members}

    def manifests(self) -> tuple[Manifest, ...]:
        """Of the set and of those joined to it."""
        return (self.manifest, *(one.manifest for one in self._joined))

    def holder(self, extension: str) -> Manifest:
        """The manifest of the set that a member is read from; the set itself where none has it."""
        joined = None if len(self) == 0 else self._joined_with(0, extension)
        return self.manifest if joined is None else joined[0].manifest

    def _holder(self, hint: str) -> Manifest:
        """The manifest of the set that holds a hint."""
        extension = extension_of(hint, self.members(0)) if len(self) else None
        return self.manifest if extension is None else self.holder(extension)

    def member(self, index: int, extension: str) -> bytes:
        if (joined := self._joined_with(index, extension)) is not None:
            held, found = joined
            return held.reader.read(found.shard, *found.entry.members[extension])
        located = self._locate(index)
        return self.reader.read(located.shard, *located.entry.members[extension])

    def _locate(self, index: int) -> "_Located":
        """A sample in its set and in those joined to it."""
        last = self._last
        if last is not None and last[0] == index:
            return last[1]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard, row = self._selected.locate(index % len(self))
        entry = self.stored.indexes.of(shard).sample(row)
        located = _Located(
            shard, entry, tuple(one.find(shard, row, entry.key) for one in self._joined)
        )
        self._last = index, located
        return located

    def _joined_with(self, index: int, extension: str) -> tuple[JoinedSet, JoinedSample] | None:
        """The joined set that a member is read from; None: the set itself, or no set."""
        located = self._locate(index)
        if extension in located.entry.members:
            return None
        pairs = zip(self._joined, located.joined, strict=True)
        return next((pair for pair in pairs if extension in pair[1].entry.members), None)

    def sample(
        self, index: int, *, seed: int | None = None, epoch: int = 0, shape: Shape | None = None
    ) -> Sample:
        """A sample; with a `seed`, as training with this seed reads it in an epoch.

        `shape` is that of its image; None: `data.image.size` squared.

        Raises:
            UserError: Its shard cannot be fetched, or a member is damaged.
        """
        config, entry = self.config, self.entry(index)
        caption = self.caption(index, seed=seed, epoch=epoch)
        image = text = hint = sizes = None
        rng = sample_rng(seed, epoch, index) if self._augments and seed is not None else None
        flipped = rng is not None and config.flips and rng.random() < 0.5
        flipped = flipped and not (config.guards_flips and names_side(caption))
        if config.image is not None:
            view = self._view(index, config.image, seed, epoch)
            view = view if shape is None else replace(view, shape=shape)
            image, size = self._image(index, config.image, view)
            image, size = (image[:, ::-1], size.mirrored()) if flipped else (image, size)
            sizes = size.values()
        if self.hint is not None:
            hint = self._hint(index, self.hint)
            hint = hint[:, :, ::-1] if flipped else hint
        if self.tokenizer is not None:
            text = np.asarray(self._ids(self.tokenizer, caption, rng), dtype=np.int64)
        stored = mirrored if flipped else str
        arrays = {name: self._array(index, stored(name)) for name in config.arrays}
        label = None if self._labels is None else self._labels.of(entry)
        empty = self._captions.empty
        for name in empty:
            arrays[name] = self._of_caption(index, name, arrays[name], caption)
        return Sample(entry.key, caption, image, text, arrays, label, hint, empty, sizes)

    def batch(self, indices: Sequence[int]) -> Batch:
        return collate([self.sample(index) for index in indices])

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch those of the shards that are read through the cache, in the background."""
        self.reader.prefetch([shard for shard in shards if self.shard_sizes[shard]])
        for joined in self._joined:
            joined.reader.prefetch(joined.shards_of(shards))

    def shard_of(self, index: int) -> tuple[int, int]:
        """The first sample of the shard of a sample, and the number of its samples."""
        shard, _ = self._selected.locate(index)
        count = self.shard_sizes[shard]
        return int(self._selected.ends[shard]) - count, count

    def check_local(self) -> None:
        """Compare the selected shards with the manifest, where they are on this machine.

        Raises:
            UserError: One is not as in its manifest.
        """
        self.reader.check_local(self._selected.shards)
        for joined in self._joined:
            joined.reader.check_local(joined.shards_of(self._selected.shards))

    @property
    def _augments(self) -> bool:
        text = self.config.text
        return self.config.flips or bool(text and text.dropout > 0)

    def caption(self, index: int, *, seed: int | None = None, epoch: int = 0) -> str:
        """The caption of a sample; with a `seed`, the one that training reads in an epoch."""
        captions = self.captions_of(index)
        if seed is None and self._choice != "joined":
            return first(captions)
        return choose(captions, self._choice, (seed or 0, epoch, index))

    def captions_of(self, index: int) -> tuple[str, ...]:
        """All captions of a sample, one a line of its KEY.txt."""
        content = self.member(index, "txt")
        try:
            return caption_lines(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            message = f"{self._name(index, 'txt')}: not UTF-8 ({error}); correct it"
            raise DamagedSampleError(message, "caption") from error

    def _ids(
        self, tokenizer: Tokenizer, caption: str, rng: np.random.Generator | None
    ) -> list[int]:
        text = self.config.text
        assert text is not None, "the tokenizer is that of data.text"
        assert text.length is not None, "set with the tokenizer"
        if text.dropout > 0 and rng is not None:
            return tokenizer.encode_dropout(caption, text.length, text.dropout, rng)
        return tokenizer.encode(caption, text.length)

    def _view(self, index: int, config: ImageConfig, seed: int | None, epoch: int) -> View:
        """What is shown of an image, in training with a seed."""
        if config.crop is None or seed is None:
            return config.view
        draws = crop_draws(DRAWS, seed, epoch, index)
        return replace(config.view, crop=config.crop, draws=draws)

    def _image(
        self, index: int, config: ImageConfig, view: View
    ) -> tuple[NDArray[np.uint8], SizeCondition]:
        if index in self._cached:
            return self._cached[index]
        extension = _image_extension(self.members(index))
        name = self._name(index, extension)
        content = self.member(index, extension)
        with decoding("image"):
            found = decode_view(content, config, name, view)
        if self.config.cache_in_memory:
            self._cached[index] = found
        return found

    def _hint(self, index: int, hint: HintMember) -> NDArray[np.float32]:
        extension = hint.extension(self.members(index))
        assert extension is not None, "checked when the set was opened"
        content = self.member(index, extension)
        with decoding("hint"):
            return hint.read(content, self._name(index, extension))

    def _array(self, index: int, name: str) -> NDArray[np.generic]:
        extension = f"{name}.npy"
        content = io.BytesIO(self.member(index, extension))
        try:
            array: NDArray[np.generic] = np.load(content, allow_pickle=False)
        except (ValueError, EOFError) as error:
            message = (
                f"{self._name(index, extension)}: not a plain array ({error}); derive it again"
            )
            raise DamagedSampleError(message, "array") from error
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise DamagedSampleError(
                f"{self._name(index, extension)}: holds NaN or infinite values; derive it again "
                "with a sound model",
                "array",
            )
        return array

    def _of_caption(
        self, index: int, name: str, array: NDArray[np.generic], caption: str
    ) -> NDArray[np.generic]:
        """What an array of all captions of a sample has of the one that is read."""
        extension, lines = f"{name}.npy", self.captions_of(index)
        joined, encoded = self._joined_with(index, extension), lines
        if joined is not None:
            held, found = joined
            text = held.reader.read(found.shard, *found.entry.members["txt"])
            encoded = caption_lines(text.decode("utf-8-sig"))
        where = self._name(index, extension)
        return self._captions.of_caption(name, array, caption, lines, encoded, where)

    def _name(self, index: int, extension: str) -> str:
        joined, located = self._joined_with(index, extension), self._locate(index)
        if joined is not None:
            url, shard = joined[0].url, joined[0].manifest.shards[joined[1].shard]
        else:
            url, shard = self.config.url, self.manifest.shards[located.shard]
        return f"{url}: {shard.name}: {located.entry.key}.{extension}"

    def _check_members(self, survey: Survey) -> None:
        try:
            self.config.check_flipped_arrays()  # a task may have added arrays to those of a recipe
        except ValueError as error:
            raise UserError(str(error)) from error
        hint = None if self.hint is None else self.hint.record.name
        for needed in required_members(self.config, hint):
            if any(needed.always_in(manifest) for manifest in self.manifests()):
                continue
            sets = " ".join(one.fingerprint for one in self.manifests()[1:])
            survey.of(
                self._selected.shards,
                f"{needed.extensions} of {self._selected.described} with {sets}",
                partial(self._check_shard, needed),
            )

    def _check_shard(self, needed: RequiredMember, shard: int) -> int:
        """Check that all selected samples of a shard have a member.

        Raises:
            UserError: One has not.
        """
        index, rows = self.stored.indexes.of(shard), self._selected.rows(shard)
        here = np.any([index.has(one)[rows] for one in needed.extensions], axis=0)
        first = int(self._selected.ends[shard] - len(rows))
        for place in np.flatnonzero(~here).tolist():
            if not any(one in self.members(first + place) for one in needed.extensions):
                raise UserError(f"{self._name(first + place, needed.shown)}: {needed.missing}")
        return len(rows)


class _Located(NamedTuple):
    """A sample in its set and in those joined to it."""

    shard: int
    entry: SampleEntry
    joined: tuple[JoinedSample, ...]


def _image_extension(members: Collection[str]) -> str:
    return next((one for one in IMAGE_EXTENSIONS if one in members), "")
