"""The kind and location of a frozen text encoder; imports pydantic only."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mezzotint.common.digests import sha256
from models.pretrained.settings import OpenClipCheckpoint

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ClipText(BaseModel, frozen=True, extra="forbid"):
    """The text tower of a CLIP of this project: `model` is its directory, a path or URL."""

    kind: Literal["clip"] = "clip"
    model: str = Field(min_length=1)
    digest: Digest | None = None
    """SHA-256 it must have; None in a recipe that accepts any."""

    @property
    def location(self) -> str:
        return self.model


class OpenClipText(OpenClipCheckpoint, frozen=True, extra="forbid"):
    """The text tower of an open_clip checkpoint on disk, such as OpenAI's ViT-L-14-quickgelu."""

    digest: Digest | None = None

    @property
    def location(self) -> str:
        return self.checkpoint


class T5Text(BaseModel, frozen=True, extra="forbid"):
    """T5's encoder: `directory` holds config.json, model.safetensors and spiece.model.

    Captions are cut and padded to `length` tokens.
    """

    kind: Literal["t5"] = "t5"
    directory: str = Field(min_length=1)
    length: int = Field(default=64, gt=0)
    digest: Digest | None = None

    @property
    def location(self) -> str:
        return self.directory


class ClipTextModel(BaseModel, frozen=True, extra="forbid"):
    """CLIP's text tower by itself, as transformers' `CLIPTextModel` in `directory`."""

    kind: Literal["clip_text"] = "clip_text"
    directory: str = Field(min_length=1)
    digest: Digest | None = None

    @property
    def location(self) -> str:
        return self.directory


LOCATIONS = ("model", "checkpoint", "directory")

TextSource = Annotated[
    ClipText | OpenClipText | ClipTextModel | T5Text, Field(discriminator="kind")
]

ClipTextSource = Annotated[ClipText | OpenClipText, Field(discriminator="kind")]
"""A text tower with a projection into the space of images."""


def identity(source: TextSource) -> str:
    """Digest of an encoder and of its settings, wherever it lies; `source` has its digest."""
    settings = source.model_dump(mode="json", exclude=set(LOCATIONS))
    return sha256(json.dumps(settings, sort_keys=True))
