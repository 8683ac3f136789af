"""Frozen text encoders: features of captions from CLIP or T5, through one interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

import torch
from torch import Tensor, nn

from mezzotint.common.digests import sha256_file
from mezzotint.common.errors import UserError
from models import store, t5
from models.clip import Clip, ClipConfig, PretrainedClip, text_width
from models.text_source import ClipText, OpenClipText, T5Text, TextSource

Tokenize = Callable[[Sequence[str], int], Tensor]
"""Captions to ids (B, length) int64, padded with 0."""


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
    tokens: Callable[[Sequence[str]], Tensor]
    """Captions to ids (B, L) int64."""
    width: int
    source: TextSource
    """Where it came from, with the digest of what was found there."""

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Features (B, L, width), computed in fp32 on the device of the weights."""
        device = next(self._module.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return self.tower.token_features(self.tokens(captions).to(device))

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
            width, found = text_width(source.architecture), _sha256(source.checkpoint)
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


def load(source: TextSource, tokenizers: TokenizerFactory) -> FrozenTextEncoder:
    """Load an encoder, without gradients.

    Raises:
        UserError: as `describe`, or weights that do not fit.
    """
    known = describe(source)
    match source:
        case ClipText():
            clip = store.load(source.model)
            assert isinstance(clip, Clip), "described as one"
            name = f"{source.model}/{store.TOKENIZER}"
            tokenize = tokenizers("own", store.tokenizer_bytes(source.model), name)
            tower: TextTower = clip.requires_grad_(requires_grad=False)
            tokens = _of_length(tokenize, clip.config.text_length)
        case OpenClipText():
            pretrained = PretrainedClip(source.architecture, source.checkpoint)
            tower, tokens = pretrained, lambda captions: pretrained.tokens(list(captions))
        case T5Text():
            name = f"{source.directory}/{t5.PIECES}"
            tokenize = tokenizers("t5", t5.pieces(source.directory), name)
            tower, tokens = t5.load_t5(source.directory), _of_length(tokenize, source.length)
        case _:
            assert_never(source)
    return FrozenTextEncoder(tower, tokens, known.width, known.source)


def _of_length(tokenize: Tokenize, length: int) -> Callable[[Sequence[str]], Tensor]:
    return lambda captions: tokenize(captions, length)


def _sha256(path: str) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(f"{path}: no such file; give a local open_clip checkpoint") from error
