"""Tiny bases and controls of them."""

import torch

from models.diffusion.condition import Condition
from models.diffusion.control.hint_encoder import HintEncoderConfig
from models.diffusion.dit import DiTConfig
from models.diffusion.unet.network import UNetConfig

TINY_UNET = {
    "image_size": 8,
    "image_channels": 2,
    "channels": 8,
    "multipliers": (1, 2),
    "depth": 1,
    "attention": (4,),
    "head_width": 8,
    "groups": 4,
}
BASES = {
    "text": UNetConfig(
        **TINY_UNET, text={"vocab": 9, "length": 3, "width": 8, "layers": 1, "heads": 1}
    ),
    "features": UNetConfig(
        **TINY_UNET,
        features={"width": 6},
        transformer={"depth": 1},
        modulation="add",
        resampling="convolution",
        classes=3,
    ),
    "class token": UNetConfig(**TINY_UNET, classes=3, class_token=6, transformer={"depth": 1}),
    "upsampler": UNetConfig(**TINY_UNET, low_resolution={"size": 4}),
    "dit": DiTConfig(image_size=8, image_channels=2, width=16, layers=4, heads=2, classes=3),
}
HINT = HintEncoderConfig(channels=1, stride=2)
TIMES = torch.tensor([0.2, 0.7])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = noise(2, 2, 8, 8)
CONDITION = Condition(
    text=torch.tensor([[1, 2, 0], [3, 4, 5]]),
    label=torch.tensor([0, 2]),
    low_res=noise(2, 2, 4, 4, seed=1),
    features=noise(2, 3, 6, seed=2),
    hints=(noise(2, 1, 16, 16, seed=3).sigmoid(),),
)


def trained(config):
    """A frozen base none of whose outputs is 0."""
    base = config.build().eval().requires_grad_(requires_grad=False)
    for place, weight in enumerate(base.parameters()):
        weight.add_(noise(*weight.shape, seed=place) * 0.2)
    return base


def new(config, base):
    """A control that starts as training starts it."""
    control = config.build()
    own, weights = control.state_dict(), base.state_dict()
    own.update({name: weights[there] for name, there in control.copied()})
    control.load_state_dict(own)
    return control
