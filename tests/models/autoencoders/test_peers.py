"""Outputs of other implementations on small networks of random weights, kept in peers/.

diffusers 0.42.1: AutoencoderKL and VQModel, their weights under the names of taming-transformers;
dall-e 0.1: encoder and decoder, under their own names. Weights are rounded to half precision.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mezzotint.common.errors import UserError
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian, moments
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.quantizer import VectorQuantizerConfig
from models.autoencoders.resnet import ResnetPyramid
from models.autoencoders.strided import StridedPyramid
from models.autoencoders.taming_weights import from_taming

PEERS = Path(__file__).with_name("peers")


def read(name, prefix):
    kept = load_file(PEERS / f"{name}.safetensors")
    weights = {
        key.removeprefix(prefix): value.float()
        for key, value in kept.items()
        if key.startswith(prefix)
    }
    return kept, weights


def pyramid(*attention):
    return ResnetPyramid(width=8, multipliers=(1, 2), blocks=1, groups=4, attention=attention)


KL = AutoencoderConfig(image_size=16, channels=3, pyramid=pyramid(), bottleneck=Gaussian())
VQ = AutoencoderConfig(
    image_size=16, channels=4, pyramid=pyramid(8), bottleneck=VectorQuantizerConfig(codes=24)
)


@torch.no_grad()
def test_a_kl_first_stage_loads_tamings_names_strictly_and_equals_diffusers():
    kept, weights = read("autoencoder_kl", "weights.")
    model = KL.build()
    model.load_state_dict(from_taming(weights, KL), strict=True)
    mean, log_variance = moments(model.hidden(kept["image"]))
    assert torch.allclose(mean, kept["mean"], atol=1e-4)
    assert torch.allclose(log_variance, kept["logvar"], atol=1e-4)
    assert torch.equal(model.encode(kept["image"]), mean)
    features = model.decoder.features(model.from_latent(kept["mean"]))
    assert torch.allclose(model.decoder.project(features), kept["output"], atol=1e-4)


@torch.no_grad()
def test_a_vq_first_stage_loads_tamings_names_strictly_and_equals_diffusers():
    kept, weights = read("vq_model", "weights.")
    model = VQ.build()
    model.load_state_dict(from_taming(weights, VQ), strict=True)
    assert torch.allclose(model.encode(kept["image"]), kept["latent"], atol=1e-4)
    codes = model.tokens(kept["image"])
    assert torch.equal(codes, kept["codes"])
    assert len(codes.unique()) > 8
    assert torch.allclose(model.bottleneck.lookup(codes), kept["quantised"], atol=1e-6)
    result = model(kept["image"], torch.Generator())
    assert torch.allclose(result.output, kept["output"], atol=1e-4)
    assert torch.allclose(model.decode_tokens(codes), kept["output"].clamp(-1, 1), atol=1e-4)


@torch.no_grad()
def test_the_legacy_beta_is_that_of_diffusers_vq_model():
    kept, weights = read("vq_model", "weights.")
    config = VQ.model_copy(update={"bottleneck": VectorQuantizerConfig(codes=24, legacy_beta=True)})
    model = config.build()
    model.load_state_dict(from_taming(weights, config), strict=True)
    result = model(kept["image"], torch.Generator())
    assert float(result.latent.loss) == pytest.approx(float(kept["loss"]), rel=1e-4)


def test_training_networks_in_a_checkpoint_are_left_out_and_strange_names_refused():
    _, weights = read("vq_model", "weights.")
    more = {**weights, "loss.discriminator.main.0.weight": torch.zeros(1)}
    assert set(from_taming(more, VQ)) == set(VQ.build().state_dict())
    with pytest.raises(UserError, match=r"unet\.conv: is not a weight"):
        from_taming({"unet.conv": torch.zeros(1)}, VQ)
    strided = VQ.model_copy(update={"pyramid": StridedPyramid()})
    with pytest.raises(UserError, match="pyramid"):
        from_taming(weights, strided)


@torch.no_grad()
def test_the_dvae_loads_the_released_names_strictly_and_equals_the_dall_e_package():
    kept, encoder = read("dall_e", "encoder.")
    _, decoder = read("dall_e", "decoder.")
    model = DVAEConfig(image_size=32, vocab=20, width=4, initial_width=4).build()
    model.encoder.load_state_dict(encoder, strict=True)
    model.decoder.load_state_dict(decoder, strict=True)
    logits = model.encoder(kept["pixels"])
    assert torch.allclose(logits, kept["logits"], atol=1e-5)
    codes = logits.argmax(1)
    hard = torch.nn.functional.one_hot(codes, 20).movedim(-1, 1).float()
    assert torch.allclose(model.decoder(hard), kept["output"], atol=1e-5)
    assert torch.allclose(model.decoder(kept["soft"]), kept["soft_output"], atol=1e-5)
