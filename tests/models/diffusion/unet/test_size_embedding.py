"""Original size, crop and target size as a condition."""

import math

import pytest
import torch

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.unet.guided_diffusion import refuse
from models.diffusion.unet.network import UNetConfig
from models.diffusion.unet.size_embedding import SizeEmbedding

CPU = torch.device("cpu")
SMALL = UNetConfig(
    image_size=8, channels=8, multipliers=(1, 2), depth=1, head_width=8, attention=(), groups=4,
    size_embedding=4,
)  # fmt: skip


def sizes(*rows: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=CPU)


def test_the_sinusoids_are_those_of_sdxl():
    """Of each number, cosines before sines, at 10,000^(-i / half), as diffusers' `Timesteps`."""
    layer = SizeEmbedding(3, 4)
    numbers = (1024, 777, 0, 13, 1152, 896)
    waves = [
        wave
        for number in numbers
        for wave in (
            *(math.cos(number * 10_000 ** (-i / 2)) for i in range(2)),
            *(math.sin(number * 10_000 ** (-i / 2)) for i in range(2)),
        )
    ]
    x = torch.zeros((1, 3, 8, 8), device=CPU)
    hidden = torch.nn.functional.silu(layer.hidden(torch.tensor([waves], device=CPU)))
    found = layer(Condition(sizes=sizes(numbers)), x)
    assert torch.allclose(found, layer.out(hidden), atol=1e-4)


def test_without_sizes_images_are_whole_and_of_the_size_of_x():
    torch.manual_seed(0)
    network = SMALL.build()
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x, t = torch.rand((2, 3, 8, 16), device=CPU), torch.tensor([0.1, 0.7], device=CPU)
    whole = Condition(sizes=sizes((8, 16, 0, 0, 8, 16)).expand(2, 6))
    cropped = Condition(sizes=sizes((20, 16, 5, 0, 8, 16)).expand(2, 6))
    with torch.no_grad():
        default = network(x, t, Condition())
        assert torch.equal(default, network(x, t, whole))
        assert not torch.allclose(default, network(x, t, cropped), atol=1e-4)


def test_other_code_has_no_such_network():
    assert SMALL.conditioning == {"sizes"}
    with pytest.raises(UserError, match=r"model.size_embedding: .* has no such network"):
        refuse(SMALL)
