"""Names and shapes of the released checkpoints, without their weights."""

import pytest
import torch

from mezzotint.common.errors import UserError
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.taming_weights import to_taming
from models.diffusion.control.network import ControlConfig
from models.diffusion.control.released import from_released, to_released
from models.diffusion.unet.compvis import to_compvis
from trainer.recipe import load


def shapes(named):
    return {name: tuple(value.shape) for name, value in named.items()}


def on_meta(config):
    with torch.device("meta"):
        return config.build().state_dict()


def test_stable_diffusion_1_has_686_weights_in_its_unet():
    config = load("recipes/sd1.yaml").model
    found = shapes(to_compvis(on_meta(config), config))
    unet = [name for name in found if name.startswith("model.diffusion_model.")]
    assert len(unet) == 686
    prefix = "model.diffusion_model."
    block = f"{prefix}input_blocks.1.1.transformer_blocks.0"
    for name, shape in {
        f"{prefix}time_embed.0.weight": (1280, 320),
        f"{prefix}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{prefix}input_blocks.3.0.op.weight": (320, 320, 3, 3),
        f"{prefix}input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        f"{block}.attn1.to_q.weight": (320, 320),
        f"{block}.attn2.to_k.weight": (320, 768),
        f"{block}.ff.net.0.proj.weight": (2560, 320),
        f"{prefix}output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        f"{prefix}out.2.weight": (4, 320, 3, 3),
        "alphas_cumprod": (1000,),
    }.items():
        assert found[name] == shape, name


def test_the_text_encoder_of_latent_diffusion_has_its_names():
    config = load("recipes/ldm_text2img_256.yaml").model
    found = shapes(to_compvis(on_meta(config), config))
    prefix = "cond_stage_model.transformer"
    for name, shape in {
        f"{prefix}.token_emb.weight": (30522, 1280),
        f"{prefix}.pos_emb.emb.weight": (77, 1280),
        f"{prefix}.attn_layers.layers.0.0.weight": (1280,),
        f"{prefix}.attn_layers.layers.0.1.to_q.weight": (512, 1280),
        f"{prefix}.attn_layers.layers.62.1.to_out.bias": (1280,),
        f"{prefix}.attn_layers.layers.63.1.net.0.0.weight": (5120, 1280),
        f"{prefix}.attn_layers.layers.63.1.net.2.weight": (1280, 5120),
        f"{prefix}.norm.bias": (1280,),
    }.items():
        assert found[name] == shape, name
    # per layer: two norms, 3 + 2 of attention, 4 of feed-forward; two embeddings, the last norm
    assert sum(name.startswith(prefix) for name in found) == 32 * 13 + 4


def test_the_first_stage_of_stable_diffusion_has_248_weights():
    config = load("recipes/imagenet_kl_f8.yaml").model
    assert isinstance(config, AutoencoderConfig)
    found = shapes(to_taming(on_meta(config), config))
    assert len(found) == 248
    assert found["encoder.down.1.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert found["encoder.down.0.downsample.conv.weight"] == (128, 128, 3, 3)
    assert found["encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert found["decoder.up.3.upsample.conv.weight"] == (512, 512, 3, 3)
    assert found["decoder.mid.block_2.norm2.bias"] == (512,)
    assert found["quant_conv.weight"] == (8, 8, 1, 1)
    assert found["post_quant_conv.weight"] == (4, 4, 1, 1)


def test_the_released_controls_have_340_weights():
    base = load("recipes/sd1.yaml").model
    config = ControlConfig(base=base, hint={"channels": 3, "stride": 8})
    state = on_meta(config)
    found = to_released(state, config)
    assert sum(value.numel() for value in found.values()) == 361_279_120
    assert len(found) == 340
    for name, shape in {
        "control_model.zero_convs.0.0.weight": (320, 320, 1, 1),
        "control_model.zero_convs.11.0.bias": (1280,),
        "control_model.middle_block_out.0.weight": (1280, 1280, 1, 1),
        "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
        "control_model.input_hint_block.14.weight": (320, 256, 3, 3),
        "control_model.input_blocks.4.1.transformer_blocks.0.attn2.to_v.weight": (640, 768),
        "control_model.middle_block.1.proj_in.bias": (1280,),
    }.items():
        assert tuple(found[name].shape) == shape, name


def test_a_control_comes_back_bit_for_bit_with_and_without_its_prefix():
    unet = {
        "image_size": 8,
        "channels": 8,
        "multipliers": [1, 2],
        "depth": 1,
        "attention": [4],
        "head_width": 8,
        "groups": 4,
        "features": {"width": 6},
        "transformer": {},
        "modulation": "add",
        "resampling": "convolution",
        "timestep_offset": 1,
    }
    config = ControlConfig(base={"kind": "unet", **unet}, hint={"channels": 1, "stride": 2})
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in on_meta(config).items()
    }
    named = to_released(state, config)
    bare = {name.removeprefix("control_model."): value for name, value in named.items()}
    beside = {**named, "first_stage_model.quant_conv.bias": torch.ones(2)}
    for weights in (named, bare, beside):
        got = from_released(weights, config)
        assert got.keys() == state.keys()
        assert all(torch.equal(got[name], value) for name, value in state.items())
    with pytest.raises(UserError, match=r"model.base.timestep_offset: 0"):
        from_released(named, config.model_copy(update={"base": steps_from_1(config.base)}))


def steps_from_1(unet):
    return unet.model_copy(update={"timestep_offset": 0})
