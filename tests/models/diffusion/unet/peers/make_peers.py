"""Outputs of other implementations' networks, kept beside this file.

In an environment of its own:

    pip install diffusers==0.42.0 torch safetensors einops blobfile
    git clone https://github.com/openai/guided-diffusion
    git clone https://github.com/CompVis/latent-diffusion
    git clone https://github.com/facebookresearch/DiT
    PYTHONPATH=guided-diffusion:latent-diffusion:DiT python make_peers.py

Weights are drawn by `sampled` from their place among the sorted names, which the tests repeat; so
only inputs, outputs, names and shapes are kept. fp32, at the steps 3 and 941 of 1,000, from 0.
"""

import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

HOME = Path(__file__).parent
STEPS = torch.tensor([3, 941])
LABELS = torch.tensor([1, 4])
TINY = {
    "image_size": 16,
    "channels": 32,
    "multipliers": [1, 2],
    "depth": 1,
    "attention": [8],
    "head_width": 8,
    "timestep_offset": 1,
}
PLAIN = {"modulation": "add", "resampling": "convolution"}
LEARNED = {"process": {"prediction_type": "noise", "variance": "learned"}}
ADM = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
    "num_head_channels": 8,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
LEVELS = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "attention_head_dim": 8,
}
ATTENDING = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sampled(shapes, kept=()):
    """Weights by name: normal, 0.05 where they are matrices, 0.3 where they are vectors."""
    return {
        name: noise(*shape, seed=place) * (0.05 if len(shape) > 1 else 0.3)
        for place, (name, shape) in enumerate(sorted(shapes.items()))
        if name not in kept
    }


class Book:
    """What is kept."""

    def __init__(self):
        self.tensors, self.notes = {}, {}

    @torch.no_grad()
    def note(self, case, peer, call, config, inputs, *, settings=None, kept=()):
        """Runs a peer with drawn weights."""
        shapes = {name: tuple(value.shape) for name, value in peer.state_dict().items()}
        peer.load_state_dict(sampled(shapes, kept), strict=not kept)
        peer.eval()
        inputs = {"x": noise(2, peer_channels(config), *sides(config), seed=100), **inputs}
        out = call(peer, inputs)
        for name, value in {**inputs, "out": out}.items():
            self.tensors[f"{case}.{name}"] = value.clone()
        for name in kept:
            self.tensors[f"{case}.kept.{name}"] = peer.state_dict()[name].contiguous()
        note = {"config": config, "shapes": shapes, "settings": settings}
        self.notes[case] = json.dumps(note)


def peer_channels(config):
    return config.get("image_channels", 3)


def sides(config):
    return (config["image_size"], config["image_size"])


def guided_diffusion(book):
    from guided_diffusion.unet import SuperResModel, UNetModel

    book.note(
        "guided_diffusion.adm",
        UNetModel(**{**ADM, "out_channels": 6}, num_classes=5),
        lambda peer, given: peer(given["x"], STEPS, y=given["label"]),
        {**TINY, **LEARNED, "classes": 5},
        {"label": LABELS},
    )
    plain = {**ADM, "use_scale_shift_norm": False, "resblock_updown": False}
    book.note(
        "guided_diffusion.ddpm",
        UNetModel(**plain),
        lambda peer, given: peer(given["x"], STEPS),
        {**TINY, **PLAIN},
        {},
    )
    heads = {**ADM, "num_head_channels": -1, "num_heads": 4}
    first = [heads.pop(name) for name in ("image_size", "in_channels")]
    book.note(
        "guided_diffusion.upsampler",
        SuperResModel(*first, **heads),
        lambda peer, given: peer(given["x"], STEPS, low_res=given["low_res"]),
        {**TINY, "heads": 4, "low_resolution": {"size": 4}},
        {"low_res": noise(2, 3, 4, 4, seed=101)},
    )


def latent_diffusion(book):
    stub = types.ModuleType("omegaconf.listconfig")
    stub.ListConfig = list
    sys.modules.update({"omegaconf": types.ModuleType("omegaconf"), "omegaconf.listconfig": stub})
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    settings = {**ADM, "in_channels": 4, "out_channels": 4, "num_head_channels": -1, "num_heads": 4}
    settings |= {"use_scale_shift_norm": False, "resblock_updown": False, "legacy": False}
    peer = UNetModel(**settings, use_spatial_transformer=True, transformer_depth=2, context_dim=24)
    book.note(
        "guided_diffusion.latent",
        peer,
        lambda peer, given: peer(given["x"], STEPS, context=given["features"]),
        {
            **TINY,
            **PLAIN,
            "image_channels": 4,
            "heads": 4,
            "transformer": {"depth": 2},
            "features": {"width": 24},
        },
        {"features": noise(2, 7, 24, seed=102)},
    )


def diffusers(book):
    from diffusers import UNet2DConditionModel, UNet2DModel

    def plain(case, settings, config, inputs):
        peer = UNet2DModel(**LEVELS, **settings)
        book.note(
            f"diffusers.{case}",
            peer,
            lambda peer, given: peer(given["x"], STEPS, given.get("label")).sample,
            config,
            inputs,
            settings=dict(peer.config),
        )

    plain("plain", ATTENDING, {**TINY, **PLAIN}, {})
    plain(
        "released",
        {**ATTENDING, "freq_shift": 1, "downsample_padding": 0},
        {**TINY, **PLAIN, "freq_shift": 1, "resampling": "convolution_end"},
        {},
    )
    residual = {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "num_class_embeds": 5,
        "out_channels": 6,
        "attn_norm_num_groups": 32,
    }
    plain("adm", residual, {**TINY, **LEARNED, "classes": 5}, {"label": LABELS})
    for case, linear in (("conditional", False), ("linear", True)):
        peer = UNet2DConditionModel(
            **{**LEVELS, "attention_head_dim": 4},
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24,
            transformer_layers_per_block=2,
            use_linear_projection=linear,
        )
        book.note(
            f"diffusers.{case}",
            peer,
            lambda peer, given: peer(given["x"], STEPS, given["features"]).sample,
            {
                **TINY,
                **PLAIN,
                "image_channels": 4,
                "heads": 4,
                "transformer": {"depth": 2},
                "features": {"width": 24},
            },
            {"features": noise(2, 7, 24, seed=103)},
            settings=dict(peer.config),
        )


class PatchEmbed(nn.Module):
    """As timm has it."""

    def __init__(self, size, patch, channels, width, *, bias):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)
        self.num_patches, self.patch_size = (size // patch) ** 2, (patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """As timm has it."""

    def __init__(self, width, *, num_heads, qkv_bias):
        super().__init__()
        self.heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=qkv_bias), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = ((query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5).softmax(-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    """As timm has it."""

    def __init__(self, *, in_features, hidden_features, act_layer, drop):
        super().__init__()
        self.fc1, self.fc2 = (
            nn.Linear(in_features, hidden_features),
            nn.Linear(hidden_features, in_features),
        )
        self.act = act_layer()

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def dit(book):
    parts = types.ModuleType("timm.models.vision_transformer")
    parts.PatchEmbed, parts.Attention, parts.Mlp = PatchEmbed, Attention, Mlp
    for name in ("timm", "timm.models"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["timm.models.vision_transformer"] = parts
    from models import DiT

    sizes = {"hidden_size": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    book.note(
        "dit.dit",
        DiT(input_size=8, patch_size=2, in_channels=4, **sizes),
        lambda peer, given: peer(given["x"], STEPS, given["label"]),
        {
            "image_size": 8,
            "image_channels": 4,
            "width": 32,
            "layers": 2,
            "heads": 4,
            "classes": 5,
            "timestep_offset": 1,
            **LEARNED,
        },
        {"label": torch.tensor([1, 5])},
        kept=("pos_embed",),
    )


def main():
    book = Book()
    for part in (guided_diffusion, latent_diffusion, diffusers, dit):
        part(book)
    save_file(book.tensors, HOME / "networks.safetensors", metadata=book.notes)


if __name__ == "__main__":
    main()
