"""CLIP's text tower of a CompVis checkpoint, as a directory of transformers' `CLIPTextModel`."""

import re
from collections.abc import Mapping

from safetensors.torch import save_file
from torch import Tensor

from launch.weights.open_clip_tokenizer import open_clip_tokenizer_files
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_bytes, write_json
from models import clip_text
from models.clip_transformers import TextTowerSettings, from_clip_text_model
from models.text_source import ClipTextModel

_PREFIX = "cond_stage_model.transformer."
_TOWER = f"{_PREFIX}text_model."
_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")
_TOKENS = "text_model.embeddings.token_embedding.weight"
_POSITIONS = "text_model.embeddings.position_embedding.weight"
_IDS = "text_model.embeddings.position_ids"
_HIDDEN = "text_model.encoder.layers.0.mlp.fc1.weight"
_HEAD_WIDTH = 64
"""Of all of OpenAI's towers, of which checkpoints hold those of ViT-L/14."""


def text_tower(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the tower under the names of `CLIPTextModel`; empty where there is none."""
    if not any(name.startswith(_TOWER) for name in weights):
        return {}
    found = {
        name.removeprefix(_PREFIX): value.float()
        for name, value in weights.items()
        if name.startswith(_PREFIX)
    }
    found.pop(_IDS, None)
    return found


def tower_settings(tower: Mapping[str, Tensor], width: int) -> TextTowerSettings:
    """Its settings, from the shapes of its weights; `width` is that of the features a UNet reads.

    The activation, which no shape shows, is that of OpenAI's CLIP: an approximation of GELU.

    Raises:
        UserError: a weight is missing or belongs to no such tower, or the widths differ.
    """
    for name in (_TOKENS, _POSITIONS, _HIDDEN):
        if name not in tower:
            raise UserError(f"{_PREFIX}{name}: is missing, so the text encoder is not complete")
    vocabulary, own = tower[_TOKENS].shape
    if own != width:
        raise UserError(
            f"model.features.width is {width}, and the checkpoint's text encoder has features of "
            f"{own}; set model.features.width={own}"
        )
    layers = {int(match[1]) for name in tower if (match := _LAYER.match(name))}
    settings = TextTowerSettings(
        vocab_size=vocabulary,
        hidden_size=own,
        intermediate_size=tower[_HIDDEN].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(own // _HEAD_WIDTH, 1),
        max_position_embeddings=tower[_POSITIONS].shape[0],
        hidden_act="quick_gelu",
        projection_dim=own,
    )
    read = from_clip_text_model(tower, settings)
    numbers = sum(value.numel() for value in read.values())
    if numbers != sum(value.numel() for value in tower.values()):
        raise UserError(
            f"{_PREFIX}*: holds other weights than those of CLIP's text tower; the text encoder "
            "cannot be read"
        )
    return settings


def write_text_tower(
    tower: Mapping[str, Tensor], settings: TextTowerSettings, out: str
) -> ClipTextModel:
    """Write the tower with OpenAI's tokenizer; captions are padded with the end as in training."""
    home = storage.local_path(out)
    home.mkdir(parents=True, exist_ok=True)
    files = open_clip_tokenizer_files(settings.max_position_embeddings, pad="<|endoftext|>")
    for name, content in files.items():
        write_bytes(home / name, content)
    save_file(dict(tower), home / clip_text.WEIGHTS, metadata={"format": "pt"})
    write_json(home / clip_text.CONFIG, settings.content())
    return ClipTextModel(directory=out, digest=clip_text.digest(out))
