"""`config.json` of diffusers' `UNet2DModel` and `UNet2DConditionModel`, to ours and back.

What these networks can be and ours cannot is refused by its key.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from mezzotint.common.errors import UserError
from models.conversion import settings_of_class
from models.diffusion.unet.diffusers import refuse
from models.diffusion.unet.network import UNetConfig

Downwards = Literal[
    "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"
]
Upwards = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"]
_MIRROR: Mapping[Downwards, Upwards] = {
    "DownBlock2D": "UpBlock2D",
    "AttnDownBlock2D": "AttnUpBlock2D",
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
    "CrossAttnDownBlock2D": "CrossAttnUpBlock2D",
}


class _CommonSettings(BaseModel, frozen=True, extra="forbid"):
    sample_size: int
    center_input_sample: Literal[False] = False
    flip_sin_to_cos: bool = True
    freq_shift: Literal[0, 1] = 0
    up_block_types: tuple[Upwards, ...]
    block_out_channels: tuple[int, ...] = Field(min_length=1)
    layers_per_block: int = 2
    downsample_padding: Literal[0, 1] = 1
    mid_block_scale_factor: Literal[1] = 1
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: None = None
    class_embed_type: None = None
    num_class_embeds: int | None = None
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"


class PlainSettings(_CommonSettings, frozen=True, extra="forbid"):
    """`UNet2DModel`; the defaults are its own."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[
        Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"], ...
    ]
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    downsample_type: Literal["conv", "resnet"] = "conv"
    upsample_type: Literal["conv", "resnet"] = "conv"
    attention_head_dim: int | None = 8
    attn_norm_num_groups: int | None = None
    add_attention: bool = True
    num_train_timesteps: int | None = None


class ConditionalSettings(_CommonSettings, frozen=True, extra="forbid"):
    """`UNet2DConditionModel`; the defaults are its own.

    Its `attention_head_dim` are numbers of heads, whatever the name says.
    """

    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[Literal["DownBlock2D", "CrossAttnDownBlock2D"], ...]
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] = "UNetMidBlock2DCrossAttn"
    only_cross_attention: Literal[False] = False
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int = 1
    reverse_transformer_layers_per_block: None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: None = None
    dual_cross_attention: Literal[False] = False
    use_linear_projection: bool = False
    addition_embed_type: None = None
    addition_time_embed_dim: None = None
    upcast_attention: bool = False
    resnet_skip_time_act: Literal[False] = False
    resnet_out_scale_factor: Literal[1] = 1
    time_embedding_act_fn: None = None
    timestep_post_act: None = None
    time_cond_proj_dim: None = None
    conv_in_kernel: Literal[3] = 3
    conv_out_kernel: Literal[3] = 3
    projection_class_embeddings_input_dim: None = None
    attention_type: Literal["default"] = "default"
    class_embeddings_concat: Literal[False] = False
    mid_block_only_cross_attention: Literal[False] | None = None
    cross_attention_norm: None = None
    addition_embed_type_num_heads: int = 64


Settings = PlainSettings | ConditionalSettings
_KINDS: Mapping[str, type[Settings]] = {
    "UNet2DModel": PlainSettings,
    "UNet2DConditionModel": ConditionalSettings,
}


def read_settings(content: Mapping[str, Any], source: str) -> Settings:
    """Their settings from the content of config.json.

    Raises:
        UserError: another class, or a key whose value ours has no network for.
    """
    return settings_of_class(_KINDS, content, source)


def config_of(settings: Settings, source: str) -> dict[str, Any]:
    """Settings of `UNetConfig` that make the same network.

    Schedule and target are not stored in them: DDPM's noise in a thousand steps, latent diffusion's
    betas for a conditional one.

    Raises:
        UserError: blocks that ours cannot be made of.
    """
    first, outputs = settings.block_out_channels[0], settings.out_channels
    if outputs not in (settings.in_channels, 2 * settings.in_channels):
        raise UserError(
            f"{source}: in_channels {settings.in_channels}, out_channels {outputs}: give --recipe, "
            "to say what the other channels are"
        )
    found: dict[str, Any] = {
        "kind": "unet",
        "image_size": settings.sample_size,
        "image_channels": settings.in_channels,
        "channels": first,
        "multipliers": [_whole(width / first) for width in settings.block_out_channels],
        "depth": settings.layers_per_block,
        "attention": _attending(settings, source),
        "modulation": "scale_shift" if settings.resnet_time_scale_shift == "scale_shift" else "add",
        "resampling": _resampling(settings, source),
        "groups": settings.norm_num_groups,
        "epsilon": settings.norm_eps,
        "dropout": settings.dropout,
        "classes": settings.num_class_embeds,
        "timestep_offset": 1,
        "freq_shift": settings.freq_shift,
        "process": {
            "schedule": {"kind": "discrete"},
            "prediction_type": "noise",
            "variance": "learned" if outputs > settings.in_channels else "fixed",
        },
    }
    match settings:
        case PlainSettings(attention_head_dim=width):
            _check_middle(settings, source)
            heads = {"heads": 1} if width is None else {"head_width": width}
            return found | heads | {"middle_attention": settings.add_attention}
        case ConditionalSettings():
            found["process"]["schedule"]["betas"] = {"kind": "sqrt_linear"}
            return found | {
                **_heads(settings, source),
                "features": {"width": settings.cross_attention_dim},
                "transformer": {"depth": settings.transformer_layers_per_block},
            }


def settings_of(config: UNetConfig) -> dict[str, Any]:
    """Content of config.json for the network.

    Raises:
        UserError: a network that diffusers does not have.
    """
    refuse(config)
    if config.transformer is not None:
        return {"_class_name": "UNet2DConditionModel", **_conditional(config)}
    if config.heads not in (None, 1):
        raise UserError(
            f"model.heads: {config.heads}: UNet2DModel has heads of one width (head_width), or one"
        )
    residual = config.resampling == "residual"
    kind = "resnet" if residual else "conv"
    names: tuple[Downwards, Downwards] = (
        ("ResnetDownsampleBlock2D", "AttnDownBlock2D")
        if residual
        else ("DownBlock2D", "AttnDownBlock2D")
    )
    return {
        "_class_name": "UNet2DModel",
        **_with_blocks(config, names),
        "downsample_type": kind,
        "upsample_type": kind,
        "attention_head_dim": None if config.heads == 1 else config.head_width,
        "attn_norm_num_groups": config.groups,
        "add_attention": config.middle_attention,
    }


def _conditional(config: UNetConfig) -> dict[str, Any]:
    heads = [config.heads_of(width) for width in config.widths]
    assert config.transformer is not None
    return {
        **_with_blocks(config, ("DownBlock2D", "CrossAttnDownBlock2D")),
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "cross_attention_dim": config.context,
        "transformer_layers_per_block": config.transformer.depth,
    }


def _with_blocks(config: UNetConfig, names: tuple[Downwards, Downwards]) -> dict[str, Any]:
    down = [names[config.attends(level)] for level in range(len(config.widths))]
    return {
        **common_settings(config),
        "down_block_types": down,
        "up_block_types": [_MIRROR[name] for name in reversed(down)],
        "num_class_embeds": None if config.classes is None else config.classes + config.null_class,
    }


def common_settings(config: UNetConfig) -> dict[str, Any]:
    """What all of their UNets have in config.json, but the kinds of their blocks."""
    inputs = 1 if config.low_resolution is None else 2
    return {
        "sample_size": config.image_size,
        "in_channels": inputs * config.image_channels,
        "out_channels": config.process.outputs * config.image_channels,
        "freq_shift": config.freq_shift,
        "flip_sin_to_cos": True,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.depth,
        "downsample_padding": int(config.resampling != "convolution_end"),
        "dropout": config.dropout,
        "norm_num_groups": config.groups,
        "norm_eps": config.epsilon,
        "resnet_time_scale_shift": "scale_shift"
        if config.modulation == "scale_shift"
        else "default",
    }


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _attending(settings: Settings, source: str) -> list[int]:
    down = settings.down_block_types
    if settings.up_block_types != tuple(_MIRROR[name] for name in reversed(down)):
        raise UserError(f"{source}: up_block_types: they do not mirror down_block_types")
    if len(down) != len(settings.block_out_channels):
        raise UserError(f"{source}: block_out_channels: not one for each of down_block_types")
    return [settings.sample_size // 2**level for level, name in enumerate(down) if "Attn" in name]


def _resampling(settings: Settings, source: str) -> str:
    """How all levels but the last halve."""
    kinds: set[str] = set()
    for name in settings.down_block_types[:-1]:
        match name:
            case "DownBlock2D" | "CrossAttnDownBlock2D":
                kinds.add("conv")
            case "ResnetDownsampleBlock2D":
                kinds.add("resnet")
            case "AttnDownBlock2D":
                assert isinstance(settings, PlainSettings)
                kinds |= {settings.downsample_type, settings.upsample_type}
    if len(kinds) > 1:
        raise UserError(f"{source}: down_block_types: levels halve in several ways")
    if kinds == {"resnet"}:
        return "residual"
    return "convolution" if settings.downsample_padding else "convolution_end"


def _check_middle(settings: PlainSettings, source: str) -> None:
    groups = settings.attn_norm_num_groups
    plain = groups is None and settings.resnet_time_scale_shift == "default"
    if not plain and groups != settings.norm_num_groups:
        raise UserError(
            f"{source}: attn_norm_num_groups: {groups} has no network here (it must be "
            "norm_num_groups)"
        )


def _heads(settings: ConditionalSettings, source: str) -> dict[str, int]:
    widths = settings.block_out_channels
    match settings.attention_head_dim:
        case int(heads):
            return {"heads": heads}
        case heads if len(heads) == len(widths):
            found = {width // each for width, each in zip(widths, heads, strict=True)}
            if len(found) == 1:
                return {"head_width": found.pop()}
    raise UserError(f"{source}: attention_head_dim: heads of several widths have no network here")
