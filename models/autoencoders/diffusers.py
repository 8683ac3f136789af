"""Weights of diffusers' `AutoencoderKL` and `VQModel` (tested with version 0.42).

A gaussian bottleneck is `AutoencoderKL`, a vector quantiser `VQModel`.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian, Identity
from models.autoencoders.quantizer import EmaVectorQuantizerConfig, VectorQuantizerConfig
from models.autoencoders.resnet import (
    Downsample,
    ResidualBlock,
    ResnetDecoder,
    ResnetEncoder,
    ResnetPyramid,
    SpatialAttention,
    Stage,
    Upsample,
)
from models.conversion import Weight, WeightMapping, export_state, import_state, layer

_BLOCK = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "skip": "conv_shortcut",
}
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What older files call the parts of an attention."""


def from_diffusers_vae(
    weights: Mapping[str, Tensor], config: AutoencoderConfig
) -> dict[str, Tensor]:
    """The state dict of `config`'s network from one with the names of diffusers.

    Raises:
        UserError: weights do not fit, or diffusers has no such network.
    """
    named = {_new(name): value for name, value in weights.items()}
    # older files hold these as pointwise convolutions
    named = {
        name: value.flatten(1) if ".attentions." in name and value.ndim == 4 else value
        for name, value in named.items()
    }
    network = _skeleton(config)
    return import_state(_layout(network), network, named)


def to_diffusers_vae(
    weights: Mapping[str, Tensor], config: AutoencoderConfig, *, mean: float = 0.0
) -> dict[str, Tensor]:
    """The inverse: our state dict under their names.

    Their pipelines scale latents and shift nothing, so the `mean` of the latents is moved into the
    weights: encode then gives latents of mean 0, and decode takes them.

    Raises:
        UserError: diffusers has no such network.
    """
    exported, own = require_held(config), dict(weights)
    if isinstance(config.bottleneck, EmaVectorQuantizerConfig):
        own = {
            name: value
            for name, value in own.items()
            if name not in ("bottleneck.counts", "bottleneck.sums")
        }
    if mean:
        own = shifted(own, config, mean)
    return export_state(_layout(_skeleton(exported)), own)


def require_held(config: AutoencoderConfig) -> AutoencoderConfig:
    """The config as diffusers can hold it: a codebook of averages is a plain one there.

    Raises:
        UserError: it names the key that diffusers has no network for.
    """
    pyramid, bottleneck = config.pyramid, config.bottleneck
    if not isinstance(pyramid, ResnetPyramid):
        raise UserError("model.pyramid.kind: diffusers has the resnet pyramid alone")
    if pyramid.patch != 1:
        raise UserError(f"model.pyramid.patch: {pyramid.patch}: diffusers has no such network")
    if isinstance(bottleneck, Identity):
        raise UserError("model.bottleneck.kind: identity: diffusers has gaussian and vq only")
    if isinstance(bottleneck, EmaVectorQuantizerConfig):
        return config.model_copy(
            update={"bottleneck": VectorQuantizerConfig(codes=bottleneck.codes)}
        )
    return config


def shifted(
    weights: Mapping[str, Tensor], config: AutoencoderConfig, mean: float
) -> dict[str, Tensor]:
    """The same network with latents of `mean` 0: its two pointwise convolutions, and its codes."""
    found = dict(weights)
    bias = found["to_latent.bias"].double().clone()
    bias[: config.channels] -= mean
    found["to_latent.bias"] = bias.float()
    kernel = found["from_latent.weight"].double().sum(dim=(1, 2, 3))
    found["from_latent.bias"] = (found["from_latent.bias"].double() + mean * kernel).float()
    if not isinstance(config.bottleneck, Gaussian):
        codebook = found["bottleneck.codebook"]
        found["bottleneck.codebook"] = (codebook.double() - mean).float()
    return found


def _skeleton(config: AutoencoderConfig) -> Autoencoder:
    require_held(config)
    with torch.device("meta"):
        return config.build()


def _new(name: str) -> str:
    parts = name.split(".")
    if len(parts) > 2 and "attentions" in parts:
        parts[-2] = _OLD.get(parts[-2], parts[-2])
    return ".".join(parts)


def _layout(network: Autoencoder) -> list[Weight]:
    found = [
        *layer("to_latent", "quant_conv"),
        *layer("from_latent", "post_quant_conv"),
        *_side(network.encoder, "encoder", "down_blocks"),
        *_side(network.decoder, "decoder", "up_blocks"),
    ]
    if network.discrete:
        found.append(Weight("bottleneck.codebook", ("quantize.embedding.weight",)))
    return found


def _side(side: nn.Module, name: str, blocks: str) -> Iterator[Weight]:
    assert isinstance(side, ResnetEncoder | ResnetDecoder)
    yield from layer(f"{name}.stem", f"{name}.conv_in")
    yield from layer(f"{name}.norm", f"{name}.conv_norm_out")
    yield from layer(f"{name}.out", f"{name}.conv_out")
    yield from _residual(side.middle.first, f"{name}.middle.first", f"{name}.mid_block.resnets.0")
    yield from _attention(f"{name}.middle.attention", f"{name}.mid_block.attentions.0")
    yield from _residual(side.middle.second, f"{name}.middle.second", f"{name}.mid_block.resnets.1")
    for level, stage in enumerate(side.stages):
        assert isinstance(stage, Stage)
        ours, theirs = f"{name}.stages.{level}", f"{name}.{blocks}.{level}"
        for index, (block, attention) in enumerate(
            zip(stage.blocks, stage.attentions, strict=True)
        ):
            assert isinstance(block, ResidualBlock)
            yield from _residual(block, f"{ours}.blocks.{index}", f"{theirs}.resnets.{index}")
            if isinstance(attention, SpatialAttention):
                yield from _attention(f"{ours}.attentions.{index}", f"{theirs}.attentions.{index}")
        match stage.resample:
            case Downsample():
                yield from layer(f"{ours}.resample.conv", f"{theirs}.downsamplers.0.conv")
            case Upsample():
                yield from layer(f"{ours}.resample.conv", f"{theirs}.upsamplers.0.conv")
            case _:
                pass


def _residual(block: ResidualBlock, ours: str, theirs: str) -> Iterator[Weight]:
    for own, other in _BLOCK.items():
        if own != "skip" or not isinstance(block.skip, nn.Identity):
            yield from layer(f"{ours}.{own}", f"{theirs}.{other}")


def _attention(ours: str, theirs: str) -> Iterator[Weight]:
    """Pointwise convolutions here, linear layers there."""
    yield from layer(f"{ours}.norm", f"{theirs}.group_norm")
    names = [f"{theirs}.to_{part}" for part in "qkv"]
    yield Weight(f"{ours}.qkv.weight", tuple(f"{name}.weight" for name in names), _POINTWISE)
    yield Weight(f"{ours}.qkv.bias", tuple(f"{name}.bias" for name in names), _STACKED)
    yield from layer(f"{ours}.out", f"{theirs}.to_out.0", _LINEAR)


_POINTWISE = WeightMapping(
    lambda parts: torch.cat(list(parts))[..., None, None],
    lambda own: [part.contiguous() for part in own.flatten(1).chunk(3)],
)
_STACKED = WeightMapping(
    lambda parts: torch.cat(list(parts)), lambda own: [part.contiguous() for part in own.chunk(3)]
)
_LINEAR = WeightMapping(lambda parts: parts[0][..., None, None], lambda own: [own.flatten(1)])
