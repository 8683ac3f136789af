"""Weights and settings of diffusers' `PriorTransformer`, and back (tested with version 0.42)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from mezzotint.common.embedding_scaling import EmbeddingScaling
from mezzotint.common.errors import UserError
from models.conversion import (
    Weight,
    WeightMapping,
    concatenated,
    export_state,
    import_state,
    layer,
    settings_of_class,
)
from models.diffusion.prior.network import DiffusionPrior, DiffusionPriorConfig, statistics

CLASS = "PriorTransformer"
_ROW = WeightMapping(lambda parts: parts[0][0], lambda own: [own[None]])
"""A vector that is a matrix of one row there."""
_POINT = WeightMapping(lambda parts: parts[0][0, 0], lambda own: [own[None, None]])


class PriorSettings(BaseModel, frozen=True, extra="forbid"):
    """`PriorTransformer`; the defaults are its own."""

    num_attention_heads: int = Field(32, gt=0)
    attention_head_dim: int = Field(64, gt=0)
    num_layers: int = Field(20, gt=0)
    embedding_dim: int = Field(768, gt=0)
    num_embeddings: int = Field(77, gt=0)
    additional_embeddings: Literal[4] = 4
    dropout: float = 0.0
    time_embed_act_fn: Literal["silu"] = "silu"
    norm_in_type: None = None
    embedding_proj_norm_type: None = None
    encoder_hid_proj_type: Literal["linear"] = "linear"
    added_emb_type: Literal["prd"] = "prd"
    time_embed_dim: None = None
    embedding_proj_dim: None = None
    clip_embed_dim: None = None


def prior_config(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of `DiffusionPriorConfig` from the content of config.json.

    The process is not stored in it: Karlo's, x_0 by the cosine schedule in a thousand steps.

    Raises:
        UserError: another class, or a key whose value ours has no network for.
    """
    found = settings_of_class({CLASS: PriorSettings}, content, source)
    return {
        "kind": "diffusion_prior",
        "dim": found.embedding_dim,
        "features": {"width": found.embedding_dim},
        "length": found.num_embeddings,
        "width": found.num_attention_heads * found.attention_head_dim,
        "layers": found.num_layers,
        "heads": found.num_attention_heads,
        "dropout": found.dropout,
        "process": {
            "schedule": {"kind": "discrete", "betas": {"kind": "cosine"}},
            "prediction_type": "x0",
        },
    }


def prior_settings(config: DiffusionPriorConfig) -> dict[str, Any]:
    """Content of config.json for the network.

    Raises:
        UserError: a network that diffusers does not have.
    """
    if config.features.width != config.dim:
        raise UserError(
            f"model.features.width is {config.features.width} and model.dim {config.dim}: "
            "PriorTransformer reads tokens that are as wide as embeddings"
        )
    own = PriorSettings(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        num_layers=config.layers,
        embedding_dim=config.dim,
        num_embeddings=config.length,
        dropout=config.dropout,
    )
    return {"_class_name": CLASS, **own.model_dump()}


def from_diffusers_prior(
    weights: Mapping[str, Tensor], config: DiffusionPriorConfig
) -> dict[str, Tensor]:
    """The state dict of `config`'s network from one with the names of diffusers.

    A new network of theirs has deviations of 0, by which every embedding would become the mean:
    they are read as 1.

    Raises:
        UserError: weights do not fit.
    """
    state = import_state(_layout(config), _skeleton(config), weights)
    if not bool(state["std"].any()):
        state["std"] = torch.ones_like(state["std"])
    return state


def to_diffusers_prior(
    weights: Mapping[str, Tensor],
    config: DiffusionPriorConfig,
    scaling: EmbeddingScaling | None = None,
) -> dict[str, Tensor]:
    """The inverse: our state dict under their names.

    Their pipelines turn a sample into an embedding by the mean and deviation that are stored with
    the weights; with the `scaling` of the model directory, by that.
    """
    own = dict(weights)
    if scaling is not None:
        own["mean"], own["std"] = statistics(scaling)
    return export_state(_layout(config), own)


def _skeleton(config: DiffusionPriorConfig) -> DiffusionPrior:
    with torch.device("meta"):
        return config.build()


def _layout(config: DiffusionPriorConfig) -> list[Weight]:
    found = [
        *layer("features", "encoder_hidden_states_proj"),
        *layer("caption", "embedding_proj"),
        *layer("embedding", "proj_in"),
        *layer("time.hidden", "time_embedding.linear_1"),
        *layer("time.out", "time_embedding.linear_2"),
        *layer("norm", "norm_out"),
        *layer("out", "proj_to_clip_embeddings"),
        Weight("query", ("prd_embedding",), _POINT),
        Weight("position.table.weight", ("positional_embedding",), _ROW),
        Weight("mean", ("clip_mean",), _ROW),
        Weight("std", ("clip_std",), _ROW),
    ]
    for number in range(config.layers):
        ours, theirs = f"blocks.{number}", f"transformer_blocks.{number}"
        found += layer(f"{ours}.attention_norm", f"{theirs}.norm1")
        for part in ("weight", "bias"):
            names = tuple(f"{theirs}.attn1.to_{one}.{part}" for one in "qkv")
            found.append(Weight(f"{ours}.attention.qkv.{part}", names, concatenated(3)))
        found += layer(f"{ours}.attention.out", f"{theirs}.attn1.to_out.0")
        found += layer(f"{ours}.forward_norm", f"{theirs}.norm3")
        found += layer(f"{ours}.feed_forward.hidden", f"{theirs}.ff.net.0.proj")
        found += layer(f"{ours}.feed_forward.out", f"{theirs}.ff.net.2")
    return found
