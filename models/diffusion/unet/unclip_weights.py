"""unCLIP's decoder in diffusers: a `UNet2DConditionModel` and a `UnCLIPTextProjModel`.

Karlo's form (tested with version 0.42). Theirs reads embeddings as CLIP gives them, and ours
normalised ones: the normalisation is a part of the linear layers there.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mezzotint.common.embedding_scaling import EmbeddingScaling
from mezzotint.common.errors import UserError
from models.conversion import Weight, export_state, import_state, layer
from models.diffusion.prior.network import statistics
from models.diffusion.unet.diffusers import has_linear_edges, one_step_later, renamed, unet_layout
from models.diffusion.unet.diffusers_settings import common_settings
from models.diffusion.unet.layout import skeleton
from models.diffusion.unet.network import UNetConfig

PROJECTION = "UnCLIPTextProjModel"
_PREFIX = "text_proj."
_READING = ("image_embedding.vector", "image_embedding.tokens")
"""The layers that read an image embedding."""


class DecoderState(NamedTuple):
    """The weights of both networks there."""

    unet: Mapping[str, Tensor]
    projection: Mapping[str, Tensor]


def to_diffusers_decoder(
    weights: Mapping[str, Tensor], config: UNetConfig, scaling: EmbeddingScaling | None
) -> DecoderState:
    """Our state dict of a decoder under their names; None: embeddings are read as CLIP gives them.

    Their pipeline always reads a learned variance: a network without one gets channels that state
    the smallest.

    Raises:
        UserError: a network that is not of Karlo's form.
    """
    require_decoder(config)
    own = dict(weights)
    if config.timestep_offset == 0:
        key = "time.hidden.weight"
        own[key] = one_step_later(own[key], config.freq_shift)
    if scaling is not None:
        own |= _folded(own, *_statistics(scaling))
    if config.process.variance == "fixed":
        weight, bias = own["out.weight"], own["out.bias"]
        own["out.weight"] = torch.cat([weight, torch.zeros_like(weight)])
        own["out.bias"] = torch.cat([bias, -torch.ones_like(bias)])
    found = export_state(_layout(config), own)
    return DecoderState(
        {name: value for name, value in found.items() if not name.startswith(_PREFIX)},
        {
            name.removeprefix(_PREFIX): value
            for name, value in found.items()
            if name.startswith(_PREFIX)
        },
    )


def from_diffusers_decoder(
    state: DecoderState, config: UNetConfig, scaling: EmbeddingScaling | None
) -> dict[str, Tensor]:
    """The inverse, for a network whose steps count from 0 (`timestep_offset: 1`).

    Raises:
        UserError: weights that do not fit, or a network that is not of Karlo's form.
    """
    require_decoder(config)
    named = renamed(state.unet)
    if has_linear_edges(named):
        raise UserError("this UNet2DConditionModel is no decoder of unCLIP: it has transformers")
    named |= {f"{_PREFIX}{name}": value for name, value in state.projection.items()}
    found = import_state(_layout(config), skeleton(config), named)
    if scaling is not None:
        mean, std = _statistics(scaling)
        found |= _folded(found, -mean / std, 1 / std)
    return found


def decoder_settings(config: UNetConfig) -> dict[str, Any]:
    """config.json of the `UNet2DConditionModel`.

    Raises:
        UserError: a network that is not of Karlo's form.
    """
    require_decoder(config)
    attending = [config.attends(level) for level in range(len(config.widths))]
    down = [_DOWN[attends] for attends in attending]
    return {
        "_class_name": "UNet2DConditionModel",
        **common_settings(config),
        "out_channels": 2 * config.image_channels,
        "down_block_types": down,
        "up_block_types": [_UP[attends] for attends in reversed(attending)],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "cross_attention_dim": config.context,
        "attention_head_dim": config.head_width,
        "class_embed_type": "identity",
    }


_DOWN = {True: "SimpleCrossAttnDownBlock2D", False: "ResnetDownsampleBlock2D"}
_UP = {True: "SimpleCrossAttnUpBlock2D", False: "ResnetUpsampleBlock2D"}


def projection_settings(config: UNetConfig) -> dict[str, Any]:
    """config.json of the `UnCLIPTextProjModel`."""
    require_decoder(config)
    assert config.image_embedding is not None
    return {
        "_class_name": PROJECTION,
        "clip_extra_context_tokens": config.image_embedding.tokens,
        "clip_embeddings_dim": config.image_embedding.dim,
        "time_embed_dim": 4 * config.channels,
        "cross_attention_dim": config.context,
    }


def require_decoder(config: UNetConfig) -> None:
    """Refuse a network that is not of Karlo's form.

    Raises:
        UserError: it names the key.
    """
    image, features = config.image_embedding, config.features
    if image is None or not image.tokens:
        raise UserError("model.image_embedding: unCLIP's decoder in diffusers has it, with tokens")
    if features is None or features.projection is None or config.text_embedding is None:
        raise UserError(
            "model.features.projection and model.text_embedding: unCLIP's decoder in diffusers "
            "reads the captions of a CLIP by them; train with captions of kind clip_text"
        )
    widths = {
        "model.image_embedding.dim": image.dim,
        "model.features.width": features.width,
        "model.text_embedding": config.text_embedding,
    }
    if len(set(widths.values())) > 1:
        raise UserError(
            f"{', '.join(f'{key} {value}' for key, value in widths.items())}: are one number in "
            "diffusers' decoder of unCLIP"
        )
    others = {
        "model.transformer": config.transformer is not None,
        "model.classes": config.classes is not None,
        "model.low_resolution": config.low_resolution is not None,
        "model.middle_attention: false": not config.middle_attention,
        "model.resampling": config.resampling != "residual",
        "model.heads": config.heads is not None,
        "model.epsilon": config.epsilon != _EPSILON,
    }
    for key, differs in others.items():
        if differs:
            raise UserError(f"{key}: unCLIP's decoder in diffusers has another form")


_EPSILON = 1e-5
"""Of the norms of its attention, whatever that of the other blocks is."""


def _layout(config: UNetConfig) -> list[Weight]:
    return [
        *unet_layout(skeleton(config), linear=False),
        *layer("features.linear", f"{_PREFIX}encoder_hidden_states_proj"),
        *layer("features.norm", f"{_PREFIX}text_encoder_hidden_states_norm"),
        *layer("text_embedding", f"{_PREFIX}embedding_proj"),
        *layer(
            "image_embedding.vector", f"{_PREFIX}clip_image_embeddings_project_to_time_embeddings"
        ),
        *layer("image_embedding.tokens", f"{_PREFIX}clip_extra_context_tokens_proj"),
        Weight("image_embedding.null", (f"{_PREFIX}learned_classifier_free_guidance_embeddings",)),
    ]


def _statistics(scaling: EmbeddingScaling) -> tuple[Tensor, Tensor]:
    mean, std = statistics(scaling)
    return mean.double(), std.double()


def _folded(weights: Mapping[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The layers of embeddings z for vectors that are mean + std z, and the learned vector."""
    found: dict[str, Tensor] = {}
    null = weights["image_embedding.null"]
    found["image_embedding.null"] = (mean + std * null.double()).to(null.dtype)
    for name in _READING:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        scaled = weight.double() / std
        found[f"{name}.weight"] = scaled.to(weight.dtype)
        found[f"{name}.bias"] = (bias.double() - scaled @ mean).to(bias.dtype)
    return found
