"""Model directories of an unCLIP system of untrained networks that are not blank."""

from pathlib import Path

import torch
from torch import nn

from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.embedding_scaling import EmbeddingRecord, EmbeddingScaling
from mezzotint.inference.config import UnclipSystem
from models import store
from models.clip import ClipConfig
from models.config import ModelConfig
from models.diffusion.prior.network import DiffusionPriorConfig
from models.diffusion.process import ProcessConfig
from models.diffusion.unet.conditions import LowResolutionConfig, TextFeaturesConfig
from models.diffusion.unet.image_embedding import ImageEmbeddingConfig
from models.diffusion.unet.network import UNetConfig
from models.text_source import ClipText

DIM, LENGTH, WORDS = 6, 8, ["woman pilot", "man pilot", "woman cook", "man cook"]
CLIP = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=40, text_length=LENGTH,
    text_width=16, text_layers=1, head_width=8, embed=DIM,
)  # fmt: skip
SIZES = {"channels": 8, "multipliers": (1,), "depth": 1, "groups": 4, "attention": ()}
DECODER = UNetConfig(
    image_size=8, head_width=4, image_embedding=ImageEmbeddingConfig(dim=DIM, tokens=2),
    features=TextFeaturesConfig(width=16, projection=8), text_embedding=DIM,
    process=ProcessConfig(prediction_type="v"), **SIZES,
)  # fmt: skip
UPSAMPLER = UNetConfig(
    image_size=16, head_width=4, low_resolution=LowResolutionConfig(size=8), **SIZES
)
PRIOR = DiffusionPriorConfig(
    dim=DIM, features=TextFeaturesConfig(width=16), length=LENGTH, width=16, layers=1, heads=2
)


def write_system(root: Path, *, scaling: EmbeddingScaling | None = None) -> UnclipSystem:
    """CLIP, prior, decoder of 8 pixels and upsampler to 16 under `root`."""
    tokenizer = Tokenizer.train(WORDS, 40)
    clip, weights = str(root / "clip"), networks(CLIP).state_dict()
    store.save(clip, CLIP, weights, card="", tokenizer=tokenizer, text_length=LENGTH)
    digest = store.describe(clip).digest
    chosen = scaling or EmbeddingScaling(kind="l2_sqrt_d", dim=DIM, samples=4)
    record = EmbeddingRecord(model=clip, digest=digest, scaling=chosen)
    encoder = ClipText(model=clip, digest=digest)
    for name, config in {"decoder": DECODER, "upsampler": UPSAMPLER, "prior": PRIOR}.items():
        reads = {} if name == "upsampler" else {"embeddings": record, "text_encoder": encoder}
        store.save(str(root / name), config, networks(config).state_dict(), card="", **reads)
    return UnclipSystem.model_validate(
        {
            "clip": clip,
            "prior": str(root / "prior"),
            "decoder": str(root / "decoder"),
            "upsamplers": [str(root / "upsampler")],
            "prior_sampling": {"steps": 3},
            "sampling": {"steps": 3, "guidance": 2.0},
            "upsampler_sampling": [{"steps": 2}],
        }
    )


def networks(config: ModelConfig) -> nn.Module:
    """A network whose weights are small random numbers, also those that start at 0."""
    torch.manual_seed(0)
    network = config.build()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    return network
