"""The settings of an edit by Imagic."""

from pydantic import BaseModel, Field


class Optimization(BaseModel, frozen=True, extra="forbid"):
    """Steps of Adam at a constant learning rate."""

    steps: int = Field(ge=0)
    lr: float = Field(gt=0)


class ImagicConfig(BaseModel, frozen=True, extra="forbid"):
    """How an edit is trained. The defaults are for networks of a few million parameters.

    The paper has, of Imagen, 100 steps at 1e-3 for the embedding and 1500 for the network, and of
    Stable Diffusion 1000 at 2e-3 and 1500 at 5e-7 (arXiv 2210.09276, 4).
    """

    embedding: Optimization = Optimization(steps=100, lr=2e-3)
    network: Optimization = Optimization(steps=100, lr=5e-5)
    upsampler: Optimization = Optimization(steps=50, lr=1e-4)
    """Of each super-resolution model of a cascade, under the target's embedding; 0 steps leave it
    as it is."""
    rank: int | None = Field(default=None, gt=0)
    """Of low-rank adapters, which are then trained instead of all weights."""
    batch: int = Field(default=4, gt=0)
    """Times and noises of the image in a step."""
    seed: int = Field(default=0, ge=0)
