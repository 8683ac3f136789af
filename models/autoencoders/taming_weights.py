"""Weights of taming-transformers and latent-diffusion first stages, renamed to ours.

Both repositories keep `encoder.*`, `decoder.*`, `quant_conv`, `post_quant_conv`, a codebook under
`quantize`, and the training loss's own networks under `loss.`, which no inference needs.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.quantizer import VectorQuantizerConfig
from models.autoencoders.resnet import ResnetPyramid

_ENDS = {
    "quant_conv": "to_latent",
    "post_quant_conv": "from_latent",
    "quantize.embedding.weight": "bottleneck.codebook",
}
_BLOCK = {
    "norm1": "norm_in",
    "conv1": "conv_in",
    "norm2": "norm_out",
    "conv2": "conv_out",
    "nin_shortcut": "skip",
}
_MIDDLE = {"block_1": "first", "attn_1": "attention", "block_2": "second"}
_SIDE = {"conv_in": "stem", "norm_out": "norm", "conv_out": "out"}
_STAGE = re.compile(r"(down|up)\.(\d+)\.(block|attn|downsample|upsample)\.(.+)")


def from_taming(weights: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """The state dict of `config`'s network from one with the names of those repositories.

    Raises:
        UserError: another pyramid than theirs, or a name that is not theirs.
    """
    if not isinstance(config.pyramid, ResnetPyramid):
        raise UserError("model.pyramid.kind: these weights are of a resnet pyramid")
    levels = len(config.pyramid.multipliers)
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(("loss.", "model_ema.")):
            continue
        renamed[_renamed(name, levels)] = value
    return _fused(renamed)


def to_taming(weights: Mapping[str, Tensor], config: AutoencoderConfig) -> dict[str, Tensor]:
    """The inverse: our state dict under their names.

    Raises:
        UserError: another pyramid or bottleneck than theirs.
    """
    if not isinstance(config.pyramid, ResnetPyramid) or config.pyramid.patch != 1:
        raise UserError("model.pyramid: their autoencoders have a resnet pyramid of patch 1")
    if not isinstance(config.bottleneck, Gaussian | VectorQuantizerConfig):
        raise UserError(
            f"model.bottleneck.kind: {config.bottleneck.kind}: their autoencoders have a gaussian "
            "or vq one"
        )
    levels = len(config.pyramid.multipliers)
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        layer, _, parameter = name.rpartition(".")
        if layer.endswith(".qkv"):
            attention = _their_name(layer.removesuffix(".qkv"), levels)
            for part, own in zip("qkv", value.chunk(3), strict=True):
                found[f"{attention}.{part}.{parameter}"] = own.contiguous()
        else:
            found[_their_name(name, levels)] = value
    return found


def _their_name(name: str, levels: int) -> str:
    """The inverse of `_renamed`; also of the name of a whole attention."""
    for theirs, ours in _ENDS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    side, section, *rest = name.split(".")
    down = side == "encoder"
    if section == "stages":
        number, what, *inner = rest
        level = int(number) if down else levels - 1 - int(number)
        stage = f"{side}.{'down' if down else 'up'}.{level}"
        if what == "resample":
            return ".".join((stage, "downsample" if down else "upsample", *inner))
        index, *inner = inner
        block = "block" if what == "blocks" else "attn"
        return ".".join((stage, block, index, *_their_layer(inner)))
    if section == "middle":
        block, *inner = rest
        return ".".join((side, "mid", _back(_MIDDLE)[block], *_their_layer(inner)))
    return ".".join((side, _back(_SIDE)[section], *rest))


def _their_layer(inner: Sequence[str]) -> list[str]:
    names = _back(_BLOCK) | {"out": "proj_out"}
    return [names.get(each, each) for each in inner]


def _back(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}


def _renamed(name: str, levels: int) -> str:
    for theirs, ours in _ENDS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder") or not rest:
        raise UserError(f"{name}: is not a weight of a taming or latent-diffusion autoencoder")
    stage = _STAGE.fullmatch(rest)
    if stage is not None:
        way, number, what, inner = stage.groups()
        # their decoder counts its levels from the finest, ours in the order of computation
        level = int(number) if way == "down" else levels - 1 - int(number)
        return f"{side}.stages.{level}.{_inner(what, inner)}"
    first, _, inner = rest.partition(".")
    if first == "mid":
        block, _, inner = inner.partition(".")
        names = _MIDDLE.get(block, block)
        return f"{side}.middle.{names}.{_part(inner)}"
    return f"{side}.{_SIDE.get(first, first)}.{inner}"


def _inner(what: str, rest: str) -> str:
    match what:
        case "block" | "attn":
            index, _, rest = rest.partition(".")
            return f"{'blocks' if what == 'block' else 'attentions'}.{index}.{_part(rest)}"
        case _:
            return f"resample.{rest}"


def _part(rest: str) -> str:
    layer, _, parameter = rest.partition(".")
    layer = "out" if layer == "proj_out" else _BLOCK.get(layer, layer)
    return f"{layer}.{parameter}"


def _fused(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of an attention as one layer."""
    fused: dict[str, Tensor] = {}
    for name, value in weights.items():
        layer, _, parameter = name.rpartition(".")
        attention, _, part = layer.rpartition(".")
        if part == "q":
            three = [weights[f"{attention}.{each}.{parameter}"] for each in "qkv"]
            fused[f"{attention}.qkv.{parameter}"] = torch.cat(three)
        elif part not in ("k", "v"):
            fused[name] = value
    return fused
