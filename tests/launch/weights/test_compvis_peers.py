"""What diffusers reads of the names of CompVis' code, and computes with its text transformer."""

import pytest
import torch
from peer_outputs import outputs_of_peers
from safetensors.torch import save_file

from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.diffusers import to_diffusers_vae
from models.autoencoders.diffusers_settings import vae_settings
from models.autoencoders.taming_weights import to_taming
from models.diffusion.control.diffusers import to_diffusers_control
from models.diffusion.control.network import ControlConfig
from models.diffusion.control.released import to_released
from models.diffusion.text_encoder import TextEncoderConfig
from models.diffusion.unet.compvis import to_compvis
from models.diffusion.unet.diffusers import to_diffusers
from models.diffusion.unet.diffusers_settings import settings_of
from models.diffusion.unet.network import UNetConfig

UNET = UNetConfig(
    image_size=8,
    image_channels=4,
    channels=8,
    multipliers=(1, 2),
    depth=1,
    attention=(8, 4),
    heads=2,
    groups=4,
    features={"width": 16},
    transformer={},
    modulation="add",
    resampling="convolution",
    process={"prediction_type": "noise", "schedule": {"kind": "discrete"}},
)
CONTROL = ControlConfig(base=UNET, hint={"channels": 3, "stride": 8})
KL = AutoencoderConfig(
    image_size=16,
    channels=4,
    pyramid={"kind": "resnet", "width": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4},
    bottleneck={"kind": "gaussian"},
)
BERT = TextEncoderConfig(form="ldm", vocab=20, length=7, width=24, layers=2, heads=2, head_width=8)
THEIR_BERT = {
    "vocab_size": 20,
    "max_position_embeddings": 7,
    "encoder_layers": 2,
    "encoder_ffn_dim": 96,
    "encoder_attention_heads": 2,
    "head_dim": 8,
    "d_model": 24,
}
BERT_NAMES = {
    "token": "embed_tokens",
    "position.table": "embed_positions",
    "norm": "layer_norm",
    "attention_norm": "self_attn_layer_norm",
    "attention.out": "self_attn.out_proj",
    "forward_norm": "final_layer_norm",
    "feed_forward.hidden": "fc1",
    "feed_forward.out": "fc2",
}
TEXT = torch.tensor([[3, 4, 5, 0, 0, 0, 0], [7, 8, 9, 1, 2, 3, 0]])


def random_weights(config):
    """A state dict of random weights."""
    generator = torch.Generator().manual_seed(6)
    state = config.build().state_dict()
    return {
        name: 0.2 * torch.randn(value.shape, generator=generator) for name, value in state.items()
    }


def as_ldm_bert(state):
    """Our text transformer under the names of diffusers' `LDMBertModel`."""
    found = {}
    for name, value in state.items():
        layer, _, parameter = name.rpartition(".")
        _, number, inner = layer.split(".", 2) if layer.startswith("blocks") else ("", "", layer)
        prefix = f"model.layers.{number}" if number else "model"
        if inner == "attention.qkv":
            for part, each in zip("qkv", value.chunk(3), strict=True):
                found[f"{prefix}.self_attn.{part}_proj.weight"] = each.contiguous()
        else:
            found[f"{prefix}.{BERT_NAMES[inner]}.{parameter}"] = value
    return found


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """What diffusers makes of our files."""
    home = tmp_path_factory.mktemp("compvis")
    named = to_compvis(random_weights(UNET), UNET) | to_released(random_weights(CONTROL), CONTROL)
    stage = to_taming(random_weights(KL), KL)
    named |= {f"first_stage_model.{name}": value for name, value in stage.items()}
    save_file(named, home / "compvis.safetensors")
    save_file(as_ldm_bert(random_weights(BERT)), home / "ldm_bert.safetensors")
    jobs = [
        {
            "job": "compvis",
            "name": "compvis",
            "folder": str(home),
            "unet": settings_of(UNET),
            "vae": vae_settings(KL, scale=1.0),
        },
        {"job": "ldm_bert", "name": "bert", "folder": str(home), "config": THEIR_BERT},
    ]
    return outputs_of_peers(home, {"text": TEXT}, jobs)


def test_names_of_compvis_are_those_that_diffusers_reads(peers):
    expected = {
        "unet": to_diffusers(random_weights(UNET), UNET),
        "vae": to_diffusers_vae(random_weights(KL), KL),
        "control": to_diffusers_control(random_weights(CONTROL), CONTROL),
    }
    for part, weights in expected.items():
        prefix = f"compvis.{part}."
        found = {
            name.removeprefix(prefix): value
            for name, value in peers.items()
            if name.startswith(prefix)
        }
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            assert torch.equal(found[name].view(value.shape), value), name


@torch.no_grad()
def test_latent_diffusions_text_transformer_is_diffusers_ldm_bert(peers):
    encoder = BERT.build().eval()
    encoder.load_state_dict(random_weights(BERT))
    out = encoder(TEXT).tokens
    assert float(out.std()) > 0.05
    assert float((out - peers["bert.tokens"]).abs().max()) < 1e-5
