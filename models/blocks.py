"""The repeated blocks of the networks: what is recomputed, or compiled, as one unit."""

from torch import nn

from models.autoencoders import resnet
from models.autoencoders.pyramid import Residual
from models.autoencoders.strided import ThinResidual
from models.diffusion.unet.blocks import AttentionBlock, ResidualBlock
from models.diffusion.unet.spatial import SpatialTransformer
from models.nn.convolution import FiLMResBlock
from models.nn.transformer import Block, DiTBlock

BLOCKS = (
    *(Block, DiTBlock, FiLMResBlock, Residual, ResidualBlock, AttentionBlock),
    *(SpatialTransformer, resnet.ResidualBlock, resnet.SpatialAttention, ThinResidual),
)
"""Their classes; one more class of network adds its own."""


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Every block inside `module`."""
    return [each for each in module.modules() if isinstance(each, BLOCKS)]
