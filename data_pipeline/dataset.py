"""A shard set as a sequence of samples with random access."""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.batch import Batch
from data_pipeline.cache import node_cache
from data_pipeline.config import CaptionChoice, DataConfig, ImageConfig
from data_pipeline.hints.member import HintMember, extension_of
from data_pipeline.images import IMAGE_EXTENSIONS, decode
from data_pipeline.joined import JoinedSet, check_encoder
from data_pipeline.labels import labels
from data_pipeline.manifest import Manifest, SampleEntry, read_manifest
from data_pipeline.sample_order import sample_rng
from data_pipeline.selection import fingerprint, select
from data_pipeline.shards import ShardReader, check_sizes
from data_pipeline.text.cached_features import CachedTextFeatures, CaptionArrays
from data_pipeline.text.captions import caption_lines, choose, first
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.embedding_scaling import IMAGE_EMBEDDING
from mezzotint.common.errors import UserError
from mezzotint.common.mirrored import mirrored, with_mirrored


@dataclass(frozen=True)
class Sample:
    """One sample: image (H, W, 3) uint8, text (L,) int64, arrays as stored, and class."""

    key: str
    caption: str
    image: NDArray[np.uint8] | None
    text: NDArray[np.int64] | None
    arrays: Mapping[str, NDArray[np.generic]]
    label: int | None = None
    hint: NDArray[np.float32] | None = None
    """(C, H, W) in [0, 1]."""
    empty_caption: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """What the arrays of captions are of an empty one."""


def open_dataset(config: DataConfig, *, expected_encoder: str | None = None) -> "Dataset":
    """Open a shard set and check shard sizes, selection, members and encoder.

    Digests are checked when a shard is first opened, and all of them by `mezzotint data verify`.

    `expected_encoder` is the digest of the model that must have encoded a derived set. Required if
    `config.encoder` is a model directory, which only the caller can resolve.

    Raises:
        UserError: The set is damaged, or it does not fit the settings.
    """
    manifest = read_manifest(config.url)
    check_sizes(config.url, manifest)
    reader = ShardReader(config.url, manifest.shards, node_cache(config.cache))
    text = config.text
    tokenizer = Tokenizer.load(text.tokenizer) if text and text.tokenizer else None
    dataset = Dataset(config, manifest, reader, tokenizer)
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
        manifest: Manifest,
        reader: ShardReader,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.config = config
        self.manifest = manifest
        self.reader = reader
        self.tokenizer = tokenizer
        positions = select(manifest, config.select)
        located = manifest.located_samples()
        self._shards = [located[position][0] for position in positions]
        self._entries = [located[position][1] for position in positions]
        keys = [entry.key for entry in self._entries]
        self._joined = [JoinedSet.open(url, keys, reader.cache) for url in config.join]
        sizes = np.bincount(self._shards, minlength=len(manifest.shards))
        self.shard_sizes: tuple[int, ...] = tuple(sizes.tolist())
        """Selected samples of each shard."""
        self._choice: CaptionChoice = config.text.captions if config.text else "random"
        self.fingerprint = fingerprint(
            self.manifests(), positions, config.shuffle_block, config.lanes, self._choice
        )
        """Digest of sets, selection, shuffle block and choice of captions, which a stream's state
        refers to."""
        self.hint: HintMember | None = None
        """The member that is a sample's hint, if `data.hint` is set."""
        if config.hint is not None:
            self.hint = HintMember.of(config, manifest, self._holder(config.hint.name))
        sets = tuple(zip((config.url, *config.join), self.manifests(), strict=True))
        self._captions = CaptionArrays.of_sets(sets, config.arrays, self._choice)
        self._check_members()
        self._labels = labels(manifest, self._entries, config.label) if config.label else None
        self._cached: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def text_features(self) -> CachedTextFeatures | None:
        """What the set keeps besides text features, if `data.arrays` has those of captions."""
        return self._captions.features

    def keys(self) -> tuple[str, ...]:
        return tuple(entry.key for entry in self._entries)

    def captions(self) -> tuple[str, ...]:
        """The first caption of every sample."""
        return tuple(self.caption(index) for index in range(len(self)))

    def all_captions(self) -> Iterator[str]:
        """Every caption of every sample."""
        for index in range(len(self)):
            yield from self.captions_of(index)

    def entry(self, index: int) -> SampleEntry:
        return self._entries[index]

    def members(self, index: int) -> Collection[str]:
        """The extensions of a sample's members, those of joined sets included."""
        if not self._joined:
            return self._entries[index].members
        joined = (one.entry(index).members for one in self._joined)
        return {name for each in (self._entries[index].members, *joined) for name in each}

    def manifests(self) -> tuple[Manifest, ...]:
        """Of the set and of those joined to it."""
        return (self.manifest, *(one.manifest for one in self._joined))

    def holder(self, extension: str) -> Manifest:
        """The manifest of the set that a member is read from; the set itself where none has it."""
        joined = None if len(self) == 0 else self._joined_with(0, extension)
        return self.manifest if joined is None else joined.manifest

    def _holder(self, hint: str) -> Manifest:
        """The manifest of the set that holds a hint."""
        extension = extension_of(hint, self.members(0)) if len(self) else None
        return self.manifest if extension is None else self.holder(extension)

    def member(self, index: int, extension: str) -> bytes:
        joined = self._joined_with(index, extension)
        if joined is not None:
            return joined.read(index, extension)
        offset, size = self._entries[index].members[extension]
        return self.reader.read(self._shards[index], offset, size)

    def _joined_with(self, index: int, extension: str) -> JoinedSet | None:
        """The joined set that a member is read from; None: the set itself, or no set."""
        if extension in self._entries[index].members:
            return None
        return next((one for one in self._joined if extension in one.entry(index).members), None)

    def sample(self, index: int, *, seed: int | None = None, epoch: int = 0) -> Sample:
        """A sample; with a `seed`, as training with this seed reads it in an epoch.

        Raises:
            UserError: Its shard cannot be fetched, or a member is damaged.
        """
        config, entry = self.config, self._entries[index]
        caption = self.caption(index, seed=seed, epoch=epoch)
        image = text = hint = None
        rng = sample_rng(seed, epoch, index) if self._augments and seed is not None else None
        flipped = rng is not None and config.flips and rng.random() < 0.5
        if config.image is not None:
            image = self._image(index, config.image)
            image = image[:, ::-1] if flipped else image
        if self.hint is not None:
            hint = self._hint(index, self.hint)
            hint = hint[:, :, ::-1] if flipped else hint
        if self.tokenizer is not None:
            text = np.asarray(self._ids(self.tokenizer, caption, rng), dtype=np.int64)
        stored = mirrored if flipped else str
        arrays = {name: self._array(index, stored(name)) for name in config.arrays}
        label = None if self._labels is None else int(self._labels[index])
        empty = self._captions.empty
        for name in empty:
            arrays[name] = self._of_caption(index, name, arrays[name], caption)
        return Sample(entry.key, caption, image, text, arrays, label, hint, empty)

    def batch(self, indices: Sequence[int]) -> Batch:
        return collate([self.sample(index) for index in indices])

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch those of the shards that are read through the cache, in the background."""
        self.reader.prefetch([shard for shard in shards if self.shard_sizes[shard]])
        if self._joined:
            wanted = set(shards)
            indices = [row for row, shard in enumerate(self._shards) if shard in wanted]
            for joined in self._joined:
                joined.reader.prefetch(joined.shards_of(indices))

    def check_local(self) -> None:
        """Compare the selected shards with the manifest, where they are on this machine.

        Raises:
            UserError: One is not as in its manifest.
        """
        self.reader.check_local(np.flatnonzero(self.shard_sizes).tolist())
        for joined in self._joined:
            joined.reader.check_local(joined.shards_of(range(len(self))))

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
        try:
            return caption_lines(self.member(index, "txt").decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._name(index, 'txt')}: not UTF-8 ({error}); correct it"
            ) from error

    def _ids(
        self, tokenizer: Tokenizer, caption: str, rng: np.random.Generator | None
    ) -> list[int]:
        text = self.config.text
        assert text is not None, "the tokenizer is that of data.text"
        assert text.length is not None, "set with the tokenizer"
        if text.dropout > 0 and rng is not None:
            return tokenizer.encode_dropout(caption, text.length, text.dropout, rng)
        return tokenizer.encode(caption, text.length)

    def _image(self, index: int, config: ImageConfig) -> NDArray[np.uint8]:
        if index in self._cached:
            return self._cached[index]
        extension = _image_extension(self.members(index))
        image = decode(self.member(index, extension), config, self._name(index, extension))
        if self.config.cache_in_memory:
            self._cached[index] = image
        return image

    def _hint(self, index: int, hint: HintMember) -> NDArray[np.float32]:
        extension = hint.extension(self.members(index))
        assert extension is not None, "checked when the set was opened"
        return hint.read(self.member(index, extension), self._name(index, extension))

    def _array(self, index: int, name: str) -> NDArray[np.generic]:
        extension = f"{name}.npy"
        content = io.BytesIO(self.member(index, extension))
        try:
            array: NDArray[np.generic] = np.load(content, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(
                f"{self._name(index, extension)}: not a plain array ({error}); derive it again"
            ) from error
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise UserError(
                f"{self._name(index, extension)}: holds NaN or infinite values; derive it again "
                "with a sound model"
            )
        return array

    def _of_caption(
        self, index: int, name: str, array: NDArray[np.generic], caption: str
    ) -> NDArray[np.generic]:
        """What an array of all captions of a sample has of the one that is read."""
        extension, lines = f"{name}.npy", self.captions_of(index)
        joined, encoded = self._joined_with(index, extension), lines
        if joined is not None:
            encoded = caption_lines(joined.read(index, "txt").decode("utf-8-sig"))
        where = self._name(index, extension)
        return self._captions.of_caption(name, array, caption, lines, encoded, where)

    def _name(self, index: int, extension: str) -> str:
        joined, key = self._joined_with(index, extension), self._entries[index].key
        if joined is not None:
            shard = joined.manifest.shards[joined.shard(index)]
            return f"{joined.url}: {shard.name}: {key}.{extension}"
        shard = self.manifest.shards[self._shards[index]]
        return f"{self.config.url}: {shard.name}: {key}.{extension}"

    def _check_members(self) -> None:
        arrays = self.config.arrays
        try:
            self.config.check_flipped_arrays()  # a task may have added arrays to those of a recipe
        except ValueError as error:
            raise UserError(str(error)) from error
        if self.config.flip_arrays:
            arrays = with_mirrored(arrays)
        for index, entry in enumerate(self._entries):
            if "txt" not in entry.members:
                raise UserError(
                    f"{self._name(index, 'txt')}: the caption is missing; drop the sample with "
                    "`mezzotint data pack`"
                )
            members = self.members(index)
            if self.config.image is not None and not _image_extension(members):
                raise UserError(
                    f"{self._name(index, 'png')}: no image (png, jpg, webp) although data.image "
                    "is set; unset it or use the set that holds the images"
                )
            if self.hint is not None and self.hint.extension(members) is None:
                name = self.hint.record.name
                raise UserError(
                    f"{self._name(index, f'{name}.png')}: no such image and no array {name}.npy, "
                    f"although data.hint names '{name}'; derive it with `mezzotint data derive "
                    "SET OUT --hint edges`, and name its set in data.join"
                )
            for name in arrays:
                if f"{name}.npy" not in members:
                    key, command = f"data.arrays names '{name}'", "mezzotint data derive"
                    if name not in self.config.arrays:
                        key = "data.flip_arrays is set"
                        command = "mezzotint data derive SET OUT --model MODEL --flip"
                        if name.startswith(IMAGE_EMBEDDING):
                            command = "mezzotint data derive SET OUT --clip CLIP --flip"
                    raise UserError(
                        f"{self._name(index, f'{name}.npy')}: no such array although {key}; derive "
                        f"it with `{command}`, and name its set in data.url or data.join"
                    )


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples.

    Raises:
        UserError: Arrays of the same name differ in shape.
    """
    first = samples[0]
    image = text = label = hint = None
    if first.hint is not None:
        hint = torch.from_numpy(np.stack([one.hint for one in samples if one.hint is not None]))
    if first.label is not None:
        label = torch.tensor([one.label for one in samples], dtype=torch.int64, device="cpu")
    if first.image is not None:
        images = np.stack([one.image for one in samples if one.image is not None])
        image = torch.from_numpy(images).permute(0, 3, 1, 2)
    if first.text is not None:
        text = torch.from_numpy(np.stack([one.text for one in samples if one.text is not None]))
    return Batch(
        keys=tuple(one.key for one in samples),
        captions=tuple(one.caption for one in samples),
        image=image,
        text=text,
        arrays={name: _stack(name, samples) for name in first.arrays},
        label=label,
        hint=hint,
        empty_caption={name: _tensor(each) for name, each in first.empty_caption.items()},
    )


def _stack(name: str, samples: Sequence[Sample]) -> Tensor:
    arrays = [sample.arrays[name] for sample in samples]
    if len({array.shape for array in arrays}) > 1:
        other = next(s for s in samples if s.arrays[name].shape != arrays[0].shape)
        raise UserError(
            f"array '{name}' of '{other.key}' has shape {other.arrays[name].shape}, that of "
            f"'{samples[0].key}' has {arrays[0].shape}; derive the set again"
        )
    return _tensor(np.stack(arrays))


def _tensor(array: NDArray[np.generic]) -> Tensor:
    """Floating-point numbers as float32, integers as int64."""
    kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
    return torch.from_numpy(array.astype(kind))


def _image_extension(members: Collection[str]) -> str:
    return next((one for one in IMAGE_EXTENSIONS if one in members), "")
