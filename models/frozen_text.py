"""Frozen text encoders: features of captions from CLIP or T5, through one interface."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, assert_never

import torch
from torch import Tensor, nn

from mezzotint.common.digests import sha256_file
from mezzotint.common.errors import UserError
from models import clip_text, store, t5
from models.clip import Clip, ClipConfig, EncodedCaptions
from models.pretrained.lookup import identify, own_activation, text_width
from models.pretrained.network import PretrainedClip
from models.pretrained.tokenizer import OpenClipTokenizer
from models.text_source import ClipText, ClipTextModel, OpenClipText, T5Text, TextSource


class Tokenize(Protocol):
    """A tokenizer that cuts captions at a length."""

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """Captions to ids (B, length) int64, padded with 0."""

    def lost(self, caption: str, length: int) -> str:
        """The end of a caption that is cut at `length` ids; empty where it fits."""


class CaptionTokens(Protocol):
    """The tokenizer of one encoder, at its length."""

    @property
    def length(self) -> int:
        """Ids per caption."""

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, length) int64."""

    def lost(self, caption: str) -> str:
        """The end of a caption that is cut; empty where it fits."""


class TokenizerFactory(Protocol):
    """Makes a tokenizer from a sentencepiece model: of this project, or T5's."""

    def __call__(self, style: Literal["own", "t5"], content: bytes, name: str) -> Tokenize:
        """The tokenizer in `content`, called `name` in messages."""


class TextTower(Protocol):
    """The network of a frozen encoder."""

    def token_features(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) int64 to a vector each, (B, L, width) in fp32."""


@dataclass(frozen=True)
class FrozenTextEncoder:
    """A frozen encoder with its tokenizer."""

    tower: TextTower
    tokens: CaptionTokens
    width: int
    source: TextSource
    """Where it came from, with the digest of what was found there."""

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Features (B, L, width), computed in fp32 on the device of the weights."""
        device = next(self._module.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return self.tower.token_features(self.tokens(captions).to(device))

    @property
    def projects(self) -> bool:
        """Whether it also embeds captions in a space of images."""
        return isinstance(self.tower, Clip | PretrainedClip)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> EncodedCaptions:
        """Features, their padding and the projections of captions, computed in fp32.

        Raises:
            UserError: it has no projection into a space of images.
        """
        tower = self.tower
        if not isinstance(tower, Clip | PretrainedClip):
            raise UserError(
                f"{self.source.location}: a {self.source.kind} embeds captions in no space of "
                "images; name a CLIP: a model directory, or kind open_clip"
            )
        device = next(tower.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return tower.encode_captions(self.tokens(captions).to(device))

    def to(self, device: torch.device) -> "FrozenTextEncoder":
        self._module.to(device)
        return self

    @property
    def _module(self) -> nn.Module:
        assert isinstance(self.tower, nn.Module), "towers are networks"
        return self.tower


@dataclass(frozen=True)
class TextEncoderInfo:
    """What is known of an encoder without loading its weights."""

    source: TextSource
    """With its digest."""
    width: int


def describe(source: TextSource) -> TextEncoderInfo:
    """Width and digest of an encoder.

    Raises:
        UserError: it is missing, no text encoder, or not that of the source's digest.
    """
    match source:
        case ClipText():
            stored = store.describe(source.model)
            if not isinstance(stored.config, ClipConfig):
                raise UserError(
                    f"{source.model}: holds a {stored.config.kind}; captions need a clip"
                )
            width, found = stored.config.text_width, stored.digest
        case OpenClipText():
            known, width = identify(source), text_width(source)
            found = sha256_file(known.weights)
            source = source.model_copy(update={"quick_gelu": known.quick_gelu})
        case ClipTextModel():
            width = clip_text.settings(source.directory).hidden_size
            found = clip_text.digest(source.directory)
        case T5Text():
            width = t5.read_settings(source.directory).d_model
            found = t5.digest(source.directory)
        case _:
            assert_never(source)
    if source.digest not in (None, found):
        raise UserError(
            f"{source.location}: holds another text encoder ({found[:12]}) than the one expected "
            f"({str(source.digest)[:12]}); put that one there, or train with this one"
        )
    return TextEncoderInfo(source.model_copy(update={"digest": found}), width)


def as_trained(source: TextSource) -> TextSource:
    """The encoder of a model directory: without an activation, the one of its architecture.

    Directories that were written before it was recorded were trained so.
    """
    if isinstance(source, OpenClipText) and source.quick_gelu is None and source.tag is None:
        own = source.architecture is not None and own_activation(source.architecture)
        return source.model_copy(update={"quick_gelu": own})
    return source


def load(source: TextSource, tokenizers: TokenizerFactory) -> FrozenTextEncoder:
    """Load an encoder, without gradients.

    Raises:
        UserError: as `describe`, or weights that do not fit.
    """
    known = describe(source)
    match known.source:
        case ClipText(model=directory):
            clip = store.load(directory)
            assert isinstance(clip, Clip), "described as one"
            tower: TextTower = clip.requires_grad_(requires_grad=False)
        case OpenClipText() as checkpoint:
            tower = PretrainedClip(checkpoint)
        case ClipTextModel(directory=directory):
            tower = clip_text.ClipTextTower(directory)
        case T5Text(directory=directory):
            tower = t5.load_t5(directory)
        case _:
            assert_never(known.source)
    return FrozenTextEncoder(
        tower, load_tokens(known.source, tokenizers), known.width, known.source
    )


def load_tokens(source: TextSource, tokenizers: TokenizerFactory) -> CaptionTokens:
    """The tokenizer of an encoder, without its weights.

    Raises:
        UserError: it is missing or of another kind.
    """
    match source:
        case ClipText(model=directory):
            config = store.describe(directory).config
            if not isinstance(config, ClipConfig):
                raise UserError(f"{directory}: holds a {config.kind}; captions need a clip")
            name = f"{directory}/{store.TOKENIZER}"
            content = store.tokenizer_bytes(directory)
            return _Cut(tokenizers("own", content, name), config.text_length)
        case OpenClipText():
            return OpenClipTokenizer(identify(source))
        case ClipTextModel(directory=directory):
            own = Path(directory) / clip_text.OWN_TOKENIZER
            if not own.is_file():
                return clip_text.OpenAITokens(directory)
            length = clip_text.settings(directory).max_position_embeddings
            return _Cut(tokenizers("own", own.read_bytes(), str(own)), length)
        case T5Text(directory=directory, length=length):
            name = f"{directory}/{t5.PIECES}"
            return _Cut(tokenizers("t5", t5.pieces(directory), name), length)
        case _:
            assert_never(source)


@dataclass(frozen=True)
class _Cut:
    """A tokenizer at one length."""

    tokenize: Tokenize
    length: int

    def __call__(self, captions: Sequence[str]) -> Tensor:
        return self.tokenize(captions, self.length)

    def lost(self, caption: str) -> str:
        return self.tokenize.lost(caption, self.length)
