"""`config.json` of diffusers' `AutoencoderKL` and `VQModel`, to ours and back.

What these networks can be and ours cannot is refused by its key.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from mezzotint.common.errors import UserError
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.diffusers import require_held
from models.autoencoders.quantizer import VectorQuantizerConfig
from models.autoencoders.resnet import ResnetPyramid
from models.conversion import settings_of_class

Down = Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
Up = Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]
_MIRROR: Mapping[Down, Up] = {
    "DownEncoderBlock2D": "UpDecoderBlock2D",
    "AttnDownEncoderBlock2D": "AttnUpDecoderBlock2D",
}


class _Common(BaseModel, frozen=True, extra="forbid"):
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: tuple[Down, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Up, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: Literal["silu", "swish"] = "silu"
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = Field(default=0.18215, gt=0)
    force_upcast: bool | float = True
    mid_block_add_attention: Literal[True] = True

    @property
    def shift(self) -> float:
        """What is subtracted from latents before they are scaled."""
        return 0.0


class KLSettings(_Common, frozen=True, extra="forbid"):
    """`AutoencoderKL`; the defaults are its own."""

    latent_channels: int = 4
    shift_factor: float | None = None
    latents_mean: None = None
    latents_std: None = None
    use_quant_conv: Literal[True] = True
    use_post_quant_conv: Literal[True] = True

    @property
    def shift(self) -> float:
        return self.shift_factor or 0.0


class VQSettings(_Common, frozen=True, extra="forbid"):
    """`VQModel`; the defaults are its own."""

    latent_channels: int = 3
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None
    norm_type: Literal["group"] = "group"
    lookup_from_codebook: bool = False


Settings = KLSettings | VQSettings
_KINDS: Mapping[str, type[Settings]] = {"AutoencoderKL": KLSettings, "VQModel": VQSettings}
VAE_CLASSES = tuple(_KINDS)


def read_vae_settings(content: Mapping[str, Any], source: str) -> Settings:
    """Their settings from the content of config.json.

    Raises:
        UserError: another class, or a key whose value ours has no network for.
    """
    return settings_of_class(_KINDS, content, source)


def vae_config(settings: Settings, source: str) -> dict[str, Any]:
    """Settings of `AutoencoderConfig` that make the same network.

    Raises:
        UserError: blocks that ours cannot be made of.
    """
    down, widths = settings.down_block_types, settings.block_out_channels
    if settings.up_block_types != tuple(_MIRROR[name] for name in reversed(down)):
        raise UserError(f"{source}: up_block_types: they do not mirror down_block_types")
    if len(down) != len(widths):
        raise UserError(f"{source}: block_out_channels: not one for each of down_block_types")
    for width in widths:
        if width % widths[0]:
            raise UserError(f"{source}: block_out_channels: {width} is no multiple of the first")
    pyramid = {
        "kind": "resnet",
        "width": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": settings.layers_per_block,
        "attention": [
            settings.sample_size // 2**level for level, name in enumerate(down) if "Attn" in name
        ],
        "groups": settings.norm_num_groups,
    }
    match settings:
        case KLSettings():
            bottleneck: dict[str, Any] = {"kind": "gaussian"}
        case VQSettings():
            if settings.vq_embed_dim not in (None, settings.latent_channels):
                raise UserError(
                    f"{source}: vq_embed_dim: {settings.vq_embed_dim} is not latent_channels "
                    f"{settings.latent_channels}; such a network has none here"
                )
            bottleneck = {"kind": "vq", "codes": settings.num_vq_embeddings}
    return {
        "kind": "autoencoder",
        "image_size": settings.sample_size,
        "channels": settings.latent_channels,
        "pyramid": pyramid,
        "bottleneck": bottleneck,
    }


def vae_settings(config: AutoencoderConfig, *, scale: float = 1.0) -> dict[str, object]:
    """Content of config.json for the network; `scale` is what pipelines multiply latents by.

    Raises:
        UserError: a network that diffusers does not have.
    """
    config = require_held(config)
    pyramid = config.pyramid
    assert isinstance(pyramid, ResnetPyramid)
    levels = len(pyramid.multipliers)
    attends = [config.image_size // 2**level in pyramid.attention for level in range(levels)]
    down: list[Down] = [
        "AttnDownEncoderBlock2D" if each else "DownEncoderBlock2D" for each in attends
    ]
    common: dict[str, object] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": down,
        "up_block_types": [_MIRROR[name] for name in reversed(down)],
        "block_out_channels": [pyramid.width * factor for factor in pyramid.multipliers],
        "layers_per_block": pyramid.blocks,
        "act_fn": "silu",
        "latent_channels": config.channels,
        "norm_num_groups": pyramid.groups,
        "sample_size": config.image_size,
        "scaling_factor": scale,
        "force_upcast": False,
    }
    match config.bottleneck:
        case Gaussian():
            return {"_class_name": "AutoencoderKL", **common}
        case VectorQuantizerConfig(codes=codes):
            vq = {"num_vq_embeddings": codes, "vq_embed_dim": config.channels}
            return {"_class_name": "VQModel", **common, **vq}
        case _:
            raise AssertionError("refused before")
