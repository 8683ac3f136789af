"""The first stage of a latent diffusion model, as its model directory records it."""

from pydantic import BaseModel, Field

from mezzotint.common.latent_scaling import LatentScaling


class FirstStage(BaseModel, frozen=True, extra="forbid"):
    """The autoencoder whose latents a model was trained on."""

    model: str = Field(min_length=1)
    """Its model directory, a path or URL."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 that it must have."""
    scaling: LatentScaling
    """Of the latents of the training set."""
