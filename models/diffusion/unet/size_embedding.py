"""Original size, crop and target size of an image as a condition (SDXL, arXiv 2307.01952, 2.2)."""

import torch
from torch import Tensor, nn

from models.diffusion.condition import Condition
from models.nn.embedding import sinusoidal_embedding

SIZES = 6


class SizeEmbedding(nn.Module):
    """Six numbers a sample to a vector: sinusoids of each, linear, SiLU, linear."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(SIZES * features, width)
        self.out = nn.Linear(width, width)

    def forward(self, condition: Condition, x: Tensor) -> Tensor:
        """(B, width) of the sizes of a condition.

        Where there are none: of whole images that have the size of x (B, C, H, W).
        """
        sizes = condition.sizes
        if sizes is None:
            whole = [*x.shape[2:], 0, 0, *x.shape[2:]]
            sizes = torch.tensor(whole, device=x.device).expand(len(x), SIZES)
        waves = sinusoidal_embedding(sizes.flatten().double() / 1000, self.features)
        joined = waves.view(len(x), -1).to(self.hidden.weight.dtype)
        return self.out(nn.functional.silu(self.hidden(joined)))
