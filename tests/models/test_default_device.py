"""With the meta device as default, networks on the CPU compute as without: tensors name theirs."""

import copy

import pytest
import torch

from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian, Identity
from models.autoencoders.discriminator import PatchDiscriminatorConfig
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.perceptual import Perceptual, RandomNetwork
from models.autoencoders.quantizer import (
    EmaVectorQuantizer,
    EmaVectorQuantizerConfig,
    VectorQuantizerConfig,
)
from models.autoencoders.resnet import ResnetPyramid
from models.autoencoders.strided import StridedPyramid
from models.autoregressive.cuda_graph_decoder import CudaGraphDecoder
from models.autoregressive.decoding import Sampling, generate
from models.autoregressive.prior import PriorConfig, weighted
from models.clip import ClipConfig, contrastive_loss
from models.nn import initialization
from models.t5 import T5Settings

STRIDED = StridedPyramid(width=16, halvings=1, blocks=1, residual_width=8, patch=2)
RESNET = ResnetPyramid(width=8, multipliers=(1, 2), blocks=1, groups=4, attention=(8,))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


IMAGES = torch.rand(2, 3, 16, 16, generator=rng()) * 2 - 1
TEXT = torch.randint(11, (2, 4), generator=rng())
CODES = torch.randint(13, (2, 64), generator=rng())


def built(config):
    """On the meta device, then materialised."""
    with torch.device("meta"):
        network = config.build()
        for _ in initialization.materialize(network, 0, device=torch.device("cpu")):
            pass
    return network


def same_under_the_meta_device(compute, network):
    """compute(network), with and without another default device, from the same state."""
    other = copy.deepcopy(network)
    with torch.device("meta"):
        found = compute(network)
    for one, expected in zip(found, compute(other), strict=True):
        assert one.device.type == "cpu"
        assert torch.equal(one, expected)
    for weight in network.parameters():
        assert weight.grad is None or weight.grad.device.type == "cpu"


def autoencoder(bottleneck, pyramid=STRIDED):
    return AutoencoderConfig(image_size=16, channels=4, pyramid=pyramid, bottleneck=bottleneck)


FIRST_STAGES = [
    DVAEConfig(image_size=16, vocab=16, width=8, groups=2, patch=2, initial_width=8),
    autoencoder(Identity()),
    autoencoder(Gaussian(), RESNET),
    autoencoder(VectorQuantizerConfig(codes=16)),
    autoencoder(EmaVectorQuantizerConfig(codes=16)),
    VQVAE2Config(
        image_size=16, channels=8, pyramid=STRIDED, bottleneck=EmaVectorQuantizerConfig(codes=16)
    ),
]


@pytest.mark.parametrize("config", FIRST_STAGES, ids=lambda config: config.kind)
def test_autoencoders(config):
    def compute(network):
        result = network(IMAGES, rng(1))
        (result.output.square().mean() + result.latent.loss).backward()
        statistics = [latent.statistics for latent in result.latents]
        if any(isinstance(each, EmaVectorQuantizer) for each in network.modules()):
            network.commit(statistics, rng(2))
        gradient = network.last_gradient(result.features, torch.ones_like(result.output))
        codes = network.code_arrays(IMAGES).values()
        return [result.output, network.reconstruct(IMAGES), gradient, *codes]

    same_under_the_meta_device(compute, built(config))


def test_discriminators_and_perceptual_distances():
    def compute(network):
        scores = network(IMAGES)
        scores.mean().backward()
        distance = Perceptual(RandomNetwork((8, 16), seed=0), None)
        return [scores, distance(IMAGES, IMAGES.flip(0))]

    same_under_the_meta_device(compute, built(PatchDiscriminatorConfig(width=8, layers=2)))


@pytest.mark.parametrize("flavor", ["dense", "paper", "dalle_pytorch"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_priors(flavor, precision):
    config = PriorConfig(
        text_vocab=11,
        text_length=4,
        image_vocab=13,
        grid=(8, 8),
        width=32,
        layers=3,
        heads=1,
        head_width=32,
        mask_flavor=flavor,
    )
    network = built(config)
    if precision == "bf16":
        network.bfloat16()

    def compute(network):
        loss = weighted(network(TEXT, CODES, CODES))
        loss.backward()
        network.eval()
        with torch.no_grad():
            graph = CudaGraphDecoder(network, TEXT)
            steps = [graph(CODES[:, :position]) for position in range(3)]
        samples = [
            generate(network, TEXT, rng(1), sampling=sampling, prefix=CODES[:, :50])
            for sampling in (Sampling(), Sampling(cache=False, top_k=3, top_p=0.9, guidance=2))
        ]
        return [loss, *steps, *samples]

    same_under_the_meta_device(compute, network)


def test_clip():
    config = ClipConfig(
        image_size=16,
        patch=8,
        vision_width=16,
        vision_layers=1,
        text_vocab=11,
        text_length=4,
        text_width=16,
        text_layers=1,
        head_width=8,
        embed=8,
    )

    def compute(network):
        loss = contrastive_loss(*network(IMAGES, TEXT))
        loss.backward()
        return [loss, network.encode_image(IMAGES), network.token_features(TEXT)]

    same_under_the_meta_device(compute, built(config))


def test_t5():
    settings = T5Settings(
        model_type="t5", vocab_size=11, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3
    )
    same_under_the_meta_device(lambda network: [network.token_features(TEXT)], built(settings))
