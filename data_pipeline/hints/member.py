"""The member of a sample that is its hint."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from data_pipeline.config import DataConfig
from data_pipeline.hints.read import HINT_EXTENSIONS, Hint, read_array_hint, read_image_hint
from data_pipeline.manifest import Manifest
from mezzotint.common.errors import UserError
from mezzotint.common.hint import HintRecord
from mezzotint.common.preprocessing import Preprocessing


@dataclass(frozen=True)
class HintMember:
    """Which member is read, and as what."""

    record: HintRecord
    size: int
    prepare: Preprocessing | None
    """How a user's image of another size is prepared; None: it must have the size."""

    @classmethod
    def of(cls, data: DataConfig, images: Manifest, holder: Manifest) -> Self:
        """Of `data.hint`; `images` is the set of `data.url`, `holder` the one with the hints.

        Raises:
            UserError: nothing states the size, or the hints were made from images prepared
                otherwise than those of the set.
        """
        config = data.hint
        assert config is not None, "the caller asks for a hint"
        prepare = data.image.preprocessing if data.image else images.preprocessing
        size = config.size or (prepare.size if prepare else None)
        if size is None and holder.detector is not None and holder.preprocessing is not None:
            size = holder.preprocessing.size
        if size is None:
            raise UserError(
                f"data.hint.size: nothing states the size of hint '{config.name}'; set it to that "
                "of the images"
            )
        if holder.detector is not None:
            _check_detected(data, holder, prepare, size)
            prepare = None
        record = HintRecord(name=config.name, channels=config.channels, detector=holder.detector)
        return cls(record, size, prepare)

    def extension(self, members: Collection[str]) -> str | None:
        """The member of a sample that holds it; None: there is none."""
        return extension_of(self.record.name, members)

    def read(self, content: bytes, name: str) -> Hint:
        """The content of the member that messages call `name`: (C, H, W) in [0, 1].

        Raises:
            UserError: it is no hint, or one of another size or number of channels.
        """
        channels, size = self.record.channels, self.size
        if name.endswith(".npy"):
            return read_array_hint(content, name, channels=channels, size=size)
        return read_image_hint(content, name, channels=channels, size=size, prepare=self.prepare)


def extension_of(name: str, members: Collection[str]) -> str | None:
    """The member of hint `name` among a sample's members."""
    names = (f"{name}.{one}" for one in HINT_EXTENSIONS)
    return next((one for one in names if one in members), None)


def _check_detected(
    data: DataConfig, holder: Manifest, prepare: Preprocessing | None, size: int
) -> None:
    found = holder.preprocessing
    assert data.hint is not None, "as in HintMember.of"
    if found is None:
        return
    if found.size != size:
        raise UserError(
            f"hint '{data.hint.name}' of '{holder.name}' was made from images of {found.size} "
            f"pixels, but {size} are needed; derive it again with --size {size}"
        )
    for key in ("fit", "filter"):
        one, other = getattr(found, key), getattr(prepare, key, getattr(found, key))
        if one != other and not data.force_preprocessing:
            raise UserError(
                f"hint '{data.hint.name}' of '{holder.name}' was made from images of {key} {one}, "
                f"but those of {data.url} are of {key} {other}; derive it again with "
                f"--image-{key} {other}, or set data.force_preprocessing=true"
            )
