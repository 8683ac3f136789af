"""The text embedding that Imagic optimises: what a network reads of a caption."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.diffusion.condition import Condition
from models.diffusion.text_diffusion import TextDiffusion
from models.diffusion.unet.network import UNet


def own_text_encoder(network: object) -> nn.Module | None:
    """The text encoder that is a part of the network; None where it reads features or no text."""
    match network:
        case TextDiffusion():
            return network.text_token
        case UNet() if network.config.text is not None:
            return network.text
        case _:
            return None


@torch.no_grad()
def text_embedding(network: object, condition: Condition) -> Tensor | None:
    """The embedding (B, L, C) of a condition's captions; None where the network reads none.

    Of a network with a text encoder of its own what that gives, else the features of the frozen
    encoder.
    """
    encoder = own_text_encoder(network)
    if encoder is None:
        return condition.features
    if condition.text is None:
        return None
    states: Tensor = encoder(condition.text)
    return states if isinstance(network, TextDiffusion) else states[0]


def with_embedding(condition: Condition, embedding: Tensor) -> Condition:
    """The condition with the embedding (B, L, C) in place of its captions'."""
    if condition.features is not None:
        return replace(condition, features=embedding)
    return replace(condition, text_states=embedding)


def interpolated(optimised: Tensor, target: Tensor, eta: float) -> Tensor:
    """eta e_tgt + (1 - eta) e_opt (arXiv 2210.09276, eq. 3): each of them exactly at 0 and 1."""
    return torch.lerp(optimised, target, eta)
