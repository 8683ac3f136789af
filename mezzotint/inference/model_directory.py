"""Models read from their directories, checked for the kind that a system needs."""

from typing import TypeVar

import torch
from torch import nn

from mezzotint.common.errors import UserError
from models import store
from models.autoencoders.autoencoder import Autoencoder
from models.autoencoders.dvae import DVAE

M = TypeVar("M", bound=nn.Module)


def read_model(directory: str, kind: type[M], setting: str, device: torch.device) -> M:
    """The model in a directory, which must be of class `kind`.

    Raises:
        UserError: it holds another kind of model.
    """
    model = store.load(directory, device=device)
    if not isinstance(model, kind):
        found = store.describe(directory).config.kind
        raise UserError(f"system.{setting}: {directory} holds a {found}, not a {kind.__name__}")
    return model


def read_discrete_autoencoder(
    directory: str, setting: str, device: torch.device
) -> DVAE | Autoencoder:
    """The autoencoder in a directory, which must have one codebook.

    Raises:
        UserError: it holds another kind of model.
    """
    model: nn.Module = store.load(directory, device=device)
    if not isinstance(model, DVAE | Autoencoder):
        found = store.describe(directory).config.kind
        raise UserError(
            f"system.{setting}: {directory} holds a {found}, not a dvae or an autoencoder"
        )
    return model
