"""Weights of the released DiT code, which is arXiv 2212.09748's."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from models.conversion import (
    Weight,
    WeightMapping,
    export_state,
    import_state,
    layer,
    permuted_rows,
)
from models.diffusion.dit import DiTConfig


def from_dit(weights: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The state dict of `config`'s network from one with the names of the released code.

    Raises:
        UserError: weights do not fit, or a network without classes, which that code does not have.
    """
    with torch.device("meta"):
        network = config.build()
    return import_state(_layout(config), network, weights)


def to_dit(weights: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The inverse: our state dict under their names."""
    return export_state(_layout(config), weights)


def _layout(config: DiTConfig) -> list[Weight]:
    if config.classes is None:
        raise UserError("model.classes: the released dit always has classes")
    if config.context is not None:
        raise UserError("model.text and model.features: the released dit has no captions")
    pixels = _pixels_last(config)
    found = [
        Weight(
            "position",
            ("pos_embed",),
            WeightMapping(lambda parts: parts[0][0], lambda own: [own[None]]),
        ),
        Weight("label.weight", ("y_embedder.embedding_table.weight",)),
        *layer("time.hidden", "t_embedder.mlp.0"),
        *layer("time.out", "t_embedder.mlp.2"),
        *layer("image_in", "x_embedder.proj", _patch(config)),
        *layer("modulation", "final_layer.adaLN_modulation.1"),
        Weight("image_out.weight", ("final_layer.linear.weight",), pixels),
        Weight("image_out.bias", ("final_layer.linear.bias",), pixels),
    ]
    for index in range(config.layers):
        ours, theirs = f"blocks.{index}", f"blocks.{index}"
        for own, other in (
            ("modulation", "adaLN_modulation.1"),
            ("attention.qkv", "attn.qkv"),
            ("attention.out", "attn.proj"),
            ("feed_forward.hidden", "mlp.fc1"),
            ("feed_forward.out", "mlp.fc2"),
        ):
            found += layer(f"{ours}.{own}", f"{theirs}.{other}")
    return found


def _patch(config: DiTConfig) -> WeightMapping:
    """A linear layer of a patch's values here, a convolution over the patch there."""
    shape = (config.image_channels, config.patch, config.patch)
    return WeightMapping(lambda parts: parts[0].flatten(1), lambda own: [own.reshape(-1, *shape)])


def _pixels_last(config: DiTConfig) -> WeightMapping:
    """The values of a patch lie as (row, column, channel) there, (channel, row, column) here."""
    channels = config.image_channels * config.process.outputs
    rows = torch.arange(channels * config.patch**2, device="cpu").view(config.patch**2, channels)
    return permuted_rows(rows.T.flatten())


def dit_settings(config: DiTConfig) -> dict[str, object]:
    """The arguments of their `DiT` that make the same network."""
    return {
        "input_size": config.image_size,
        "patch_size": config.patch,
        "in_channels": config.image_channels,
        "hidden_size": config.width,
        "depth": config.layers,
        "num_heads": config.heads,
        "class_dropout_prob": 0.1 if config.null_class else 0.0,
        "num_classes": config.classes,
        "learn_sigma": config.process.variance == "learned",
    }
