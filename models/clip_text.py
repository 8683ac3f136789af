"""CLIP's text tower by itself, from a directory of transformers' `CLIPTextModel`.

The directory holds config.json, model.safetensors and the tokenizer: `tokenizer.model` of this
project, or OpenAI's vocabulary (vocab.json, tokenizer_config.json).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mezzotint.common.digests import sha256, sha256_file
from mezzotint.common.errors import UserError
from models.clip import token_features
from models.clip_transformers import (
    TextTowerSettings,
    from_clip_text_model,
    read_text_settings,
)
from models.finite import require_finite_weights
from models.torchvision_compat import ensure_torchvision

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OWN_TOKENIZER, VOCABULARY, TOKENIZER_CONFIG = (
    "tokenizer.model",
    "vocab.json",
    "tokenizer_config.json",
)
_OPENAI_PIECES = 49408
_POSITIONS = "embeddings.position_ids"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        UserError: no such file, or no object in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no such file; the folder is not complete") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold an object")
    return content


def settings(directory: str) -> TextTowerSettings:
    """The settings of the tower; raises UserError as `read_text_settings`."""
    where = Path(directory) / CONFIG
    return read_text_settings(read_json(where), str(where))


def digest(directory: str) -> str:
    """SHA-256 over config, weights and tokenizer: names the encoder.

    Raises:
        UserError: a file is missing.
    """
    home = Path(directory)
    names = [CONFIG, WEIGHTS]
    names += [OWN_TOKENIZER] if (home / OWN_TOKENIZER).is_file() else [VOCABULARY, TOKENIZER_CONFIG]
    for name in names:
        if not (home / name).is_file():
            raise UserError(f"{home / name}: no such file; the text encoder is not complete")
    return sha256("\n".join(sha256_file(home / name) for name in names))


class ClipTextTower(nn.Module):
    """The frozen tower."""

    def __init__(self, directory: str) -> None:
        """Raises UserError where a file is missing or its weights do not fit."""
        super().__init__()
        ensure_torchvision()
        from open_clip.model import QuickGELU
        from open_clip.transformer import TextTransformer

        found = settings(directory)
        self.clip = TextTransformer(
            context_length=found.max_position_embeddings,
            vocab_size=found.vocab_size,
            width=found.hidden_size,
            heads=found.num_attention_heads,
            layers=found.num_hidden_layers,
            mlp_ratio=found.intermediate_size / found.hidden_size,
            act_layer=QuickGELU if found.hidden_act == "quick_gelu" else nn.GELU,
            output_dim=found.hidden_size,
            proj_type="none",
            pool_type="none",
        )
        where = Path(directory) / WEIGHTS
        state = from_clip_text_model(_read(where), found)
        try:
            self.clip.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{where}: weights do not fit {CONFIG} ({error})") from error
        self.requires_grad_(requires_grad=False).eval()

    def token_features(self, tokens: Tensor) -> Tensor:
        return token_features(self.clip, tokens)


def _read(where: Path) -> Mapping[str, Tensor]:
    try:
        weights = load_file(where)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{where}: cannot be read as safetensors ({error})") from error
    require_finite_weights(str(where), weights)
    return {name: value for name, value in weights.items() if not name.endswith(_POSITIONS)}


def read_padding(home: Path) -> int:
    """The id that captions are padded with, of a directory with OpenAI's vocabulary.

    Raises:
        UserError: it holds another vocabulary, or a file is missing.
    """
    vocabulary = read_json(home / VOCABULARY)
    if len(vocabulary) != _OPENAI_PIECES or vocabulary.get("!") != 0:
        raise UserError(f"{home / VOCABULARY}: is not OpenAI's vocabulary, the one known here")
    stated = read_json(home / TOKENIZER_CONFIG).get("pad_token", "<|endoftext|>")
    pad = stated.get("content") if isinstance(stated, dict) else stated
    if pad not in vocabulary:
        raise UserError(f"{home / TOKENIZER_CONFIG}: pad_token: {pad} is not in {VOCABULARY}")
    return int(vocabulary[pad])


class OpenAITokens:
    """OpenAI's tokenizer, padded with the id that the directory states."""

    def __init__(self, directory: str) -> None:
        """Raises UserError where it is another vocabulary."""
        ensure_torchvision()
        from open_clip.tokenizer import SimpleTokenizer

        self.length = settings(directory).max_position_embeddings
        self._tokenizer = SimpleTokenizer(context_length=self.length)
        self._pad = read_padding(Path(directory))

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Ids (B, length) int64."""
        ids = self._tokenizer(list(captions))
        ended = (ids == self._tokenizer.eot_token_id).int().cumsum(1)
        after = (ended > 0) & (ids != self._tokenizer.eot_token_id)
        return torch.where(after, self._pad, ids)

    def lost(self, caption: str) -> str:
        """The end of a caption that is cut; empty where it fits."""
        ids = self._tokenizer.encode(caption)
        return str(self._tokenizer.decode(ids[self.length - 2 :])).strip()
