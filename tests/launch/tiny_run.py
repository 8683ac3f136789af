"""A pipeline's run with a system of every kind, of untrained networks that are not blank."""

import torch
import yaml

from data_pipeline.text.tokenizer import Tokenizer
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.levels import level_shapes
from models.autoencoders.quantizer import EmaVectorQuantizerConfig
from models.autoencoders.strided import StridedPyramid
from models.autoregressive.prior import PriorConfig
from models.clip import ClipConfig
from models.diffusion.classifier import NoisyClassifierConfig
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig

CAPTIONS = ("woman pilot", "man cook")
TEXT = {"text_vocab": 60, "text_length": 6}
PYRAMID = StridedPyramid(width=8, halvings=1, blocks=1, residual_width=8, patch=2)
LEVELS = VQVAE2Config(
    image_size=16, channels=8, pyramid=PYRAMID, bottleneck=EmaVectorQuantizerConfig(codes=16)
)
SMALL = {"image_size": 8, "channels": 8, "multipliers": (1, 2), "depth": 1, "groups": 4}
PRIOR = {"width": 16, "layers": 2, "heads": 1, "head_width": 16}
CONFIGS = {
    "prior": PriorConfig(image_vocab=8, grid=(4, 4), **PRIOR, **TEXT),
    "dvae": DVAEConfig(image_size=16, vocab=8, width=8, groups=2, patch=2, initial_width=8),
    "clip": ClipConfig(
        image_size=16, patch=8, vision_width=16, vision_layers=1, text_width=16, text_layers=1,
        head_width=8, embed=8, **TEXT,
    ),
    "base": TextDiffusionConfig(image_size=8, patch=4, width=16, layers=2, heads=1, **TEXT),
    "upsampler": SuperResolutionConfig(low_size=8, image_size=16, channels=(8,), blocks=1),
    "classes": UNetConfig(**SMALL, attention=(), head_width=4, classes=3, null_class=True),
    "classifier": NoisyClassifierConfig(**SMALL, attention=(), head_width=8, classes=3),
    "vqvae2": LEVELS,
    "kl": AutoencoderConfig(image_size=16, channels=4, pyramid=PYRAMID, bottleneck=Gaussian()),
    **{
        name: PriorConfig(**PRIOR, **vars(shape))
        for name, shape in level_shapes(LEVELS, **TEXT).items()
    },
}  # fmt: skip
READS_TEXT = ("prior", "clip", "base", "top", "bottom")
DALLE = {"kind": "dalle", "prior": "${prior}/model", "dvae": "${dvae}/model"}
RANKED = {"ranker": "${models}/clip/model", "candidates": 3, "sampling": {"guidance": 1.5}}
SYSTEMS = {
    "dalle": DALLE | RANKED,
    "plain": DALLE | {"candidates": 1},
    "cascade": {
        "kind": "cascade",
        "base": "${base}/model",
        "upsampler": "${upsampler}/model",
        "base_sampling": {"steps": 3, "guidance": 2.0, "eta": 1.0},
        "upsampler_sampling": {"steps": 2, "level": 0.1},
    },
    "hierarchy": RANKED
    | {
        "kind": "hierarchy",
        "priors": ["${top}/model", "${bottom}/model"],
        "autoencoder": "${vqvae2}/model",
    },
}


def write_run(root):
    """Models and `pipeline.yaml` in a directory, which is returned."""
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    tokenizer = Tokenizer.train(words, 40)
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        network = config.build()
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.1 * torch.randn(weight.shape))
        reads = {"tokenizer": tokenizer, "text_length": 6} if name in READS_TEXT else {}
        directory = str(root / name / "model")
        store.save(directory, config, network.state_dict(), card="tiny", **reads)
    stages = {name: {"kind": "train", "recipe": "recipe.yaml"} for name in CONFIGS}
    evaluated = {
        name: {"kind": "evaluate", "evaluation": {"system": system}}
        for name, system in SYSTEMS.items()
    }
    tree = {"name": "x", "values": {"models": str(root)}, "stages": stages | evaluated}
    (root / "pipeline.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return root
