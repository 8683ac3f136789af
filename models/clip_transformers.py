"""Text towers of CLIP as transformers' `CLIPTextModel`, and back (tested with version 5.24).

open_clip's names are the ones of this project's CLIP. Of a caption both give a vector per token
after the last norm; the projection to the common space is not part of `CLIPTextModel`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from mezzotint.common.errors import UserError
from models.conversion import validated

_ATTENTION = "self_attn"
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": f"{_ATTENTION}.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_FUSED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_TOP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_PREFIX = "text_model."


class TextTowerSettings(BaseModel, frozen=True, extra="ignore"):
    """config.json of `CLIPTextModel`; the defaults are its own."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: Literal["gelu", "quick_gelu"] = "quick_gelu"
    layer_norm_eps: float = Field(default=1e-5, ge=1e-5, le=1e-5)
    projection_dim: int = 512
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407

    def content(self) -> dict[str, object]:
        """The content of config.json."""
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **self.model_dump(),
        }


def read_text_settings(content: Mapping[str, Any], source: str) -> TextTowerSettings:
    """The settings in the content of a config.json.

    Raises:
        UserError: another model, or one that is none of CLIP's text towers.
    """
    if content.get("model_type") != "clip_text_model":
        raise UserError(
            f"{source}: model_type: {content.get('model_type')} is not clip_text_model, the text "
            "encoder that can be read"
        )
    return validated(TextTowerSettings, content, source)


def to_clip_text_model(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower in a state dict of open_clip's CLIP, under the names of `CLIPTextModel`.

    Weights of the image tower, the projection and the temperature are left out.
    """
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        block, fused = _BLOCK.fullmatch(name), _FUSED.fullmatch(name)
        if name in _TOP:
            found[_PREFIX + _TOP[name]] = value.contiguous()
        elif fused is not None:
            layer = f"{_PREFIX}encoder.layers.{fused[1]}.{_ATTENTION}"
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                found[f"{layer}.{part}_proj.{fused[2]}"] = piece.contiguous()
        elif block is not None and block[2] in _LAYER:
            layer = f"{_PREFIX}encoder.layers.{block[1]}"
            found[f"{layer}.{_LAYER[block[2]]}.{block[3]}"] = value.contiguous()
    return found


def with_projection(
    settings: Mapping[str, Any], weights: Mapping[str, Tensor], projection: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of `CLIPTextModelWithProjection`; `projection` (width, D) of open_clip.

    It gives embeddings as they are, not of unit norm.
    """
    named = {**weights, "text_projection.weight": projection.T.contiguous()}
    return {**settings, "architectures": ["CLIPTextModelWithProjection"]}, named


def from_clip_text_model(
    weights: Mapping[str, Tensor], settings: TextTowerSettings
) -> dict[str, Tensor]:
    """The inverse: a text tower under open_clip's names, without projection.

    Raises:
        UserError: a weight is missing.
    """
    inside = {name.removeprefix(_PREFIX): value for name, value in weights.items()}

    def get(name: str) -> Tensor:
        if name not in inside:
            raise UserError(f"weights do not fit the text encoder: missing {name}")
        return inside[name].float()

    found = {ours: get(theirs) for ours, theirs in _TOP.items()}
    for index in range(settings.num_hidden_layers):
        ours, theirs = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            parts = [get(f"{theirs}.{_ATTENTION}.{part}_proj.{kind}") for part in "qkv"]
            found[f"{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
            for own, other in _LAYER.items():
                found[f"{ours}.{own}.{kind}"] = get(f"{theirs}.{other}.{kind}")
    return found
