"""The members that samples must have for the settings of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.config import DataConfig
from data_pipeline.hints.read import HINT_EXTENSIONS
from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.manifest import Manifest
from mezzotint.common.embedding_scaling import IMAGE_EMBEDDING
from mezzotint.common.mirrored import with_mirrored


@dataclass(frozen=True)
class RequiredMember:
    """A member that every sample must have."""

    extensions: Sequence[str]
    """Any of these."""
    missing: str
    """What to say of a sample that has none."""

    @property
    def shown(self) -> str:
        """The extension that messages name."""
        return self.extensions[0]

    def always_in(self, manifest: Manifest) -> bool:
        """Whether the counts of a set say that every sample has it."""
        counts = (manifest.members.get(one, 0) for one in self.extensions)
        return manifest.sample_count in counts


def required_members(config: DataConfig, hint: str | None) -> list[RequiredMember]:
    """What these settings need; `hint` is the name of the hint that is read, if any."""
    found = [
        RequiredMember(
            ("txt",), "the caption is missing; drop the sample with `mezzotint data pack`"
        )
    ]
    if config.image is not None:
        found.append(
            RequiredMember(
                IMAGE_EXTENSIONS,
                "no image (png, jpg, webp) although data.image is set; unset it or use the set "
                "that holds the images",
            )
        )
    if hint is not None:
        found.append(
            RequiredMember(
                [f"{hint}.{one}" for one in HINT_EXTENSIONS],
                f"no such image and no array {hint}.npy, although data.hint names '{hint}'; derive "
                "it with `mezzotint data derive SET OUT --hint edges`, and name its set in "
                "data.join",
            )
        )
    arrays = with_mirrored(config.arrays) if config.flip_arrays else config.arrays
    return found + [_array(name, config) for name in arrays]


def _array(name: str, config: DataConfig) -> RequiredMember:
    key, command = f"data.arrays names '{name}'", "`mezzotint data derive`"
    if name not in config.arrays:
        key = "data.flip_arrays is set"
        command = "`mezzotint data derive SET OUT --model MODEL --flip`"
        if name.startswith(IMAGE_EMBEDDING):
            command = "`mezzotint data derive SET OUT --clip CLIP --flip`"
    return RequiredMember(
        (f"{name}.npy",),
        f"no such array although {key}; derive it with {command}, and name its set in data.url or "
        "data.join",
    )
