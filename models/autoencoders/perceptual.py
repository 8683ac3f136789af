"""Distances between images in the features of a frozen network (LPIPS, arXiv 1801.03924, eq. 1).

Nothing is downloaded: weights are local files, a model directory, or random from a seed.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from models.nn import initialization
from models.weights_file import read_weights

VGG_CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Indices of VGG-16's convolutions in torchvision's `features`, by stage."""
VGG_WIDTHS = (64, 128, 256, 512, 512)


class Perceptual(nn.Module):
    """Mean over positions of the squared difference of unit-norm features, summed over layers."""

    def __init__(self, features: nn.Module, channels: tuple[Tensor, ...] | None) -> None:
        super().__init__()
        self.features = features
        self.requires_grad_(requires_grad=False).eval()
        self._channels = channels

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        """Distance of (B, 3, H, W) to the same in [-1, 1], averaged over the batch: a scalar."""
        self.to(image.device)
        total = image.new_zeros((), dtype=torch.float32)
        both = self.features(torch.cat([image, other]).float())
        for index, activation in enumerate(both):
            first, second = unit(activation.float()).chunk(2)
            difference = (first - second).square()
            if self._channels is None:
                layer = difference.sum(dim=1)
            else:
                layer = (difference * self._channels[index].to(image.device)).sum(dim=1)
            total = total + layer.mean()
        return total


def unit(features: Tensor) -> Tensor:
    """Features (B, C, h, w) with unit norm over the channels of every position."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


class Vgg(nn.Module):
    """VGG-16's convolutions (arXiv 1409.1556, D), under torchvision's names."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {}
        inputs = 3
        for indices, width in zip(VGG_CONVOLUTIONS, VGG_WIDTHS, strict=True):
            for index in indices:
                layers[str(index)] = nn.Conv2d(inputs, width, 3, padding=1)
                inputs = width
        self.features = nn.ModuleDict(layers)
        self.register_buffer("shift", torch.empty(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.empty(3, 1, 1), persistent=False)
        # ImageNet's mean and deviation in the units of [-1, 1], as LPIPS rounds them
        initialization.computed(self.shift, lambda: _channels(-0.030, -0.088, -0.188))
        initialization.computed(self.scale, lambda: _channels(0.458, 0.448, 0.450))

    def forward(self, image: Tensor) -> Iterator[Tensor]:
        """Activations after the last convolution of each of five stages."""
        x = (image - self.shift) / self.scale
        for stage, indices in enumerate(VGG_CONVOLUTIONS):
            if stage:
                x = F.max_pool2d(x, 2)
            for index in indices:
                x = F.relu(self.features[str(index)](x))
            yield x


def _channels(*values: float) -> Tensor:
    return torch.tensor(values, device="cpu")[:, None, None]


class Activations(nn.Module):
    """The outputs of an encoder's layers at each of its resolutions."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Iterator[Tensor]:
        """The last feature map of each resolution, the finest first."""
        maps: dict[int, Tensor] = {}

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            maps[output.shape[-1]] = output

        hooks = [
            module.register_forward_hook(keep)
            for module in self.encoder.modules()
            if not list(module.children())
        ]
        try:
            self.encoder(image)
        finally:
            for hook in hooks:
                hook.remove()
        yield from maps.values()


class RandomNetwork(nn.Module):
    """Convolution, leaky ReLU, halving; weights N(0, 2 / fan-in) from a seed."""

    def __init__(self, widths: tuple[int, ...], seed: int) -> None:
        super().__init__()
        rng = Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        inputs = 3
        for width in widths:
            layer = nn.Conv2d(inputs, width, 3, padding=1, bias=False, device="cpu")
            nn.init.normal_(layer.weight, std=(2 / (9 * inputs)) ** 0.5, generator=rng)
            self.layers.append(layer)
            inputs = width

    def forward(self, image: Tensor) -> Iterator[Tensor]:
        x = image.contiguous(memory_format=torch.channels_last)
        for index, layer in enumerate(self.layers):
            x = F.leaky_relu(layer(F.avg_pool2d(x, 2) if index else x), 0.2)
            yield x


def linear_weights(path: str) -> tuple[Tensor, ...]:
    """LPIPS' weight of each channel, five tensors (C, 1, 1).

    Raises:
        UserError: the file is missing or holds other weights.
    """
    weights = read_weights(path)
    names = [f"lin{index}.model.1.weight" for index in range(len(VGG_WIDTHS))]
    for name, width in zip(names, VGG_WIDTHS, strict=True):
        if name not in weights or weights[name].numel() != width:
            raise UserError(f"{path}: holds no {name} of {width} channels; it is not LPIPS 0.1")
    return tuple(weights[name].float().view(-1, 1, 1) for name in names)


def load_vgg(path: str) -> Vgg:
    """VGG-16 from torchvision's state dict; its classifier may be in the file.

    Raises:
        UserError: the file is missing or holds other weights.
    """
    weights = read_weights(path)
    with torch.device("meta"):
        network = Vgg()
    expected = {name: weights[name] for name in network.state_dict() if name in weights}
    try:
        initialization.assign_state(network, expected, device=torch.device("cpu"))
    except RuntimeError as error:
        raise UserError(f"{path}: is not VGG-16 as torchvision names it ({error})") from error
    return network
