"""DALL-E's dVAE encoder and decoder, with the parameter names of the released networks.

arXiv 2102.12092, A.1. `patch` > 1 puts a pixel-unshuffle before the encoder and its inverse after
the decoder, which makes small networks cheap; 1 is the published network.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.autoencoders.resnet import convolution_gradient
from models.nn import initialization

if TYPE_CHECKING:
    from models.autoencoders.dvae import DVAEConfig


class Convolution(nn.Module):
    """A square convolution with "same" padding, weights `w` ~ N(0, 1 / fan-in) and bias `b` = 0.

    With `exact` it computes in fp32 under any autocast, as the paper does for the first and last
    layers, which are as wide as the vocabulary.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, exact: bool = False) -> None:
        super().__init__()
        self.size, self.exact = size, exact
        self.w = nn.Parameter(torch.empty(outputs, inputs, size, size))
        self.b = nn.Parameter(torch.empty(outputs))
        initialization.normal(self.w, (inputs * size**2) ** -0.5)
        initialization.constant(self.b, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        padding = (self.size - 1) // 2
        if not self.exact:
            return F.conv2d(x, self.w, self.b, padding=padding)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.w.float(), self.b.float(), padding=padding)


class Residual(nn.Module):
    """skip(x) + gain branch(x): four convolutions, each after a ReLU, in a bottleneck of 1/4."""

    def __init__(self, inputs: int, outputs: int, sizes: tuple[int, ...], gain: float) -> None:
        super().__init__()
        inner = outputs // 4
        widths = (inputs, inner, inner, inner, outputs)
        self.gain = gain
        self.id_path = nn.Identity() if inputs == outputs else Convolution(inputs, outputs, 1)
        layers = OrderedDict[str, nn.Module]()
        for index, size in enumerate(sizes):
            layers[f"relu_{index + 1}"] = nn.ReLU()
            layers[f"conv_{index + 1}"] = Convolution(widths[index], widths[index + 1], size)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return self.id_path(x) + self.gain * self.res_path(x)


def group(
    inputs: int, outputs: int, sizes: tuple[int, ...], config: "DVAEConfig"
) -> OrderedDict[str, nn.Module]:
    """Residual blocks of one resolution; the first one changes the width."""
    widths = [inputs, *[outputs] * (config.blocks_per_group - 1)]
    return OrderedDict(
        (f"block_{index + 1}", Residual(width, outputs, sizes, config.residual_gain))
        for index, width in enumerate(widths)
    )


class Encoder(nn.Module):
    """Image to code logits; each group but the last halves the resolution by max-pooling."""

    def __init__(self, config: "DVAEConfig") -> None:
        super().__init__()
        self.patch = config.patch
        width = config.width
        layers = OrderedDict[str, nn.Module](input=Convolution(3 * config.patch**2, width, 7))
        inputs = width
        for index in range(config.groups):
            outputs = width * 2**index
            modules = group(inputs, outputs, (3, 3, 3, 1), config)
            if index < config.groups - 1:
                modules["pool"] = nn.MaxPool2d(2)
            layers[f"group_{index + 1}"] = nn.Sequential(modules)
            inputs = outputs
        layers["output"] = nn.Sequential(
            OrderedDict(relu=nn.ReLU(), conv=Convolution(inputs, config.vocab, 1, exact=True))
        )
        self.blocks = nn.Sequential(layers)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), pixels as `losses.map_pixels` maps them, to logits (B, vocab, h, w)."""
        first = self.blocks[0]
        assert isinstance(first, Convolution)
        pixels = F.pixel_unshuffle(image.to(first.w.dtype), self.patch)
        return self.blocks(pixels.contiguous(memory_format=torch.channels_last))


class Decoder(nn.Module):
    """Codes on the simplex to the six channels of the likelihood; nearest-neighbour upsampling."""

    def __init__(self, config: "DVAEConfig") -> None:
        super().__init__()
        self.patch = config.patch
        inputs = config.initial_width
        layers = OrderedDict[str, nn.Module](input=Convolution(config.vocab, inputs, 1, exact=True))
        for index in reversed(range(config.groups)):
            outputs = config.width * 2**index
            modules = group(inputs, outputs, (1, 3, 3, 3), config)
            if index:
                modules["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            layers[f"group_{config.groups - index}"] = nn.Sequential(modules)
            inputs = outputs
        layers["output"] = nn.Sequential(
            OrderedDict(relu=nn.ReLU(), conv=Convolution(inputs, 6 * config.patch**2, 1))
        )
        self.blocks = nn.Sequential(layers)

    def features(self, codes: Tensor) -> Tensor:
        """(B, vocab, h, w) to the input of the last convolution."""
        first = self.blocks[0]
        assert isinstance(first, Convolution)
        hidden = first(codes.contiguous(memory_format=torch.channels_last)).to(first.w.dtype)
        return F.relu(self.blocks[1:-1](hidden))

    def project(self, features: Tensor) -> Tensor:
        """The last convolution, and the inverse of the encoder's pixel-unshuffle."""
        output = self.blocks[-1]
        assert isinstance(output, nn.Sequential)
        return F.pixel_shuffle(output[-1](features), self.patch)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, vocab, h, w) to (B, 6, H, W)."""
        return self.project(self.features(codes))

    def last_gradient(self, features: Tensor, output: Tensor) -> Tensor:
        """Gradient of the last weight, from that of the output; reads no weight."""
        output = F.pixel_unshuffle(output, self.patch)
        shape = (output.shape[1], features.shape[1], 1, 1)
        return convolution_gradient(features, shape, output)
