"""Models read from their directories for a system, and how they compute."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar, assert_never

import torch
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from mezzotint.inference.config import Precision
from mezzotint.inference.images import from_bytes, to_bytes
from models import store
from models.autoencoders.autoencoder import Autoencoder
from models.autoencoders.dvae import DVAE

M = TypeVar("M", bound=nn.Module)


def read_model(directory: str, kind: type[M], setting: str) -> M:
    """The model in a directory, which must be of class `kind`."""
    model = store.load(directory)
    if not isinstance(model, kind):
        found = store.describe(directory).config.kind
        raise UserError(f"system.{setting}: {directory} holds a {found}, not a {kind.__name__}")
    return model


def read_coded(directory: str, setting: str) -> DVAE | Autoencoder:
    """The autoencoder in a directory, which must have one codebook.

    Raises:
        UserError: it holds another kind of model.
    """
    model: nn.Module = store.load(directory)
    if not isinstance(model, DVAE | Autoencoder):
        found = store.describe(directory).config.kind
        raise UserError(
            f"system.{setting}: {directory} holds a {found}, not a dvae or an autoencoder"
        )
    return model


def computes_in_bf16(precision: Precision) -> bool:
    """Whether matrix products run in bf16; `auto` means where the processor multiplies bf16."""
    match precision:
        case "fp32":
            return False
        case "bf16":
            return True
        case "auto":
            return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
        case _:
            assert_never(precision)


@dataclass(frozen=True)
class AutocastPolicy:
    """How the networks compute while they draw."""

    bf16: bool

    def __call__(self) -> AbstractContextManager[object]:
        """A context for the networks to run in."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    @property
    def name(self) -> str:
        """What a protocol calls it."""
        return "bf16 autocast" if self.bf16 else "fp32"


def through_codes(
    pictures: Tensor, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]
) -> Tensor:
    """Pictures (n, H, W, 3) uint8 as what their codes stand for.

    Pictures with equal codes become equal bytes, whatever batch they were decoded in.
    """
    codes = torch.cat([encode(from_bytes(part)) for part in torch.split(pictures, 64)])
    distinct, place = torch.unique(codes, dim=0, return_inverse=True)
    decoded = torch.cat([to_bytes(decode(part)) for part in torch.split(distinct, 64)])
    return decoded[place].clone()
