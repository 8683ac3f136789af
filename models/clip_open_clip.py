"""A CLIP of this project as a folder that open_clip opens (tested with version 3.3).

`open_clip.create_model_from_pretrained("local-dir:FOLDER")` and
`open_clip.get_tokenizer("local-dir:FOLDER")`: open_clip pools a caption at the tokenizer's end id
there, which is its last id that is not padding.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from mezzotint.common.preprocessing import Preprocessing
from models.clip import ClipConfig

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_PREFIX = "clip."


def open_clip_settings(
    config: ClipConfig, images: Preprocessing, *, end_id: int, fill: int
) -> dict[str, object]:
    """Content of open_clip_config.json.

    `end_id` is the tokenizer's, `fill` the value of padding pixels, 0 to 255. open_clip resizes
    bicubically or bilinearly; other filters are written as bicubic.
    """
    return {
        "model_cfg": {
            "embed_dim": config.embed,
            "vision_cfg": {
                "image_size": config.image_size,
                "layers": config.vision_layers,
                "width": config.vision_width,
                "head_width": config.head_width,
                "patch_size": config.patch,
            },
            "text_cfg": {
                "context_length": config.text_length,
                "vocab_size": config.text_vocab,
                "width": config.text_width,
                "heads": config.text_width // config.head_width,
                "layers": config.text_layers,
                "pool_type": "eos",
                "eos_id": end_id,
                "hf_tokenizer_name": "tokenizer.json",
            },
        },
        "preprocess_cfg": {
            "mean": [images.mean] * 3,
            "std": [images.std] * 3,
            "interpolation": "bilinear" if images.filter == "bilinear" else "bicubic",
            "resize_mode": "longest" if images.fit == "pad" else "shortest",
            "fill_color": fill,
        },
    }


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of open_clip's CLIP from that of `Clip`; the temperature is capped as there.

    Buffers that are computed are left out.
    """
    found = {
        name.removeprefix(_PREFIX): value.contiguous()
        for name, value in weights.items()
        if name.startswith(_PREFIX) and name != f"{_PREFIX}attn_mask"
    }
    scale = found["logit_scale"].float().clamp(max=math.log(100.0))
    return {**found, "logit_scale": scale.reshape(())}
