"""A network while it is fine-tuned to one image, and the network that it was before and after."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.imagic.embedding import own_text_encoder
from models import store
from models.nn.low_rank import adaptable, adapters, add_adapters, remove_adapters


@dataclass(frozen=True)
class TunedNetwork:
    """A network of a system."""

    name: str
    """Its part of the edit, as in `network` or `upsampler_0`."""
    network: nn.Module
    directory: str
    """Its model directory, from which it is read again."""

    def digest(self) -> str:
        """SHA-256 of the names and values of its weights, as they are now."""
        found = hashlib.sha256()
        for name, weight in sorted(self.network.state_dict().items()):
            found.update(name.encode())
            found.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    @property
    def _frozen(self) -> Sequence[nn.Module]:
        encoder = own_text_encoder(self.network)
        return [] if encoder is None else [encoder]

    def check(self, rank: int | None) -> None:
        """Refuse a rank that no layer takes.

        Raises:
            UserError: it is that of the largest layer, or higher.
        """
        if rank is not None and not adaptable(self.network, rank, without=self._frozen):
            raise UserError(f"rank {rank}: no layer of {self.directory} is larger; choose a lower")

    def parameters(self, rank: int | None, seed: int) -> Mapping[str, nn.Parameter]:
        """What is trained of it: all weights, or those of new adapters of a rank.

        A text encoder of its own stays as it is (arXiv 2210.09276, 3.3, where it is frozen).
        """
        if rank is None:
            fixed = {id(weight) for module in self._frozen for weight in module.parameters()}
            chosen = {
                name: weight
                for name, weight in self.network.named_parameters()
                if id(weight) not in fixed
            }
            for weight in chosen.values():
                weight.requires_grad_()
            return chosen
        rng = keyed_generator(seed, "imagic", self.name, "adapters")
        add_adapters(self.network, rank, rng, without=self._frozen)
        return {
            f"{name}.{key}": weight
            for name, adapter in adapters(self.network)
            for key, weight in adapter.named_parameters()
        }

    @contextmanager
    def training(self) -> Iterator[None]:
        """Training mode, with dropout where the network has any; afterwards evaluation mode."""
        self.network.train()
        try:
            yield
        finally:
            self.network.eval().requires_grad_(requires_grad=False)


@contextmanager
def restored(
    networks: Sequence[TunedNetwork], digests: Mapping[str, str], *, rank: int | None
) -> Iterator[None]:
    """Leave the networks as they are at the entrance, whatever happens inside.

    `digests` are theirs, by name. Adapters are taken out; whole weights are read again from the
    model directories, so that no second copy of them is in memory.

    Raises:
        UserError: a model directory holds other weights by then.
    """
    for each in networks:
        each.network.eval().requires_grad_(requires_grad=False)
    with ExitStack() as stack:
        for each in networks:
            stack.callback(_restore, each, digests[each.name], rank=rank)
        yield


def _restore(tuned: TunedNetwork, digest: str, *, rank: int | None) -> None:
    network = tuned.network
    network.eval().requires_grad_(requires_grad=False)
    if rank is not None:
        remove_adapters(network)
    if tuned.digest() == digest:
        return
    device = next(network.parameters()).device
    network.load_state_dict(store.load(tuned.directory, device=device).state_dict())
    if tuned.digest() != digest:
        raise UserError(
            f"{tuned.directory}: holds other weights than those that were read from it; load the "
            "system again"
        )


@contextmanager
def merged_once() -> Iterator[None]:
    """Compute the weights under adapters once, for networks that are not trained inside."""
    with parametrize.cached():
        yield
