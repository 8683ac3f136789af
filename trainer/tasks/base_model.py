"""The frozen network that a control is trained for."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mezzotint.common import storage
from mezzotint.common.errors import UserError
from models import store
from models.base_record import BaseRecord
from models.diffusion.control.network import Control, Controllable
from models.nn.initialization import computed
from trainer.tasks.targets import LatentDecoder


def describe_base(location: str, key: str = "task.base") -> tuple[str, store.ModelInfo]:
    """The model directory of a base, or of the training run at that place, and its description.

    `key` is the setting that messages name.

    Raises:
        UserError: there is none.
    """
    try:
        return location, store.describe(location)
    except UserError as error:
        below = storage.join(location, "model")
        try:
            return below, store.describe(below)
        except UserError:
            raise UserError(f"{key}: {error}") from error


def cast_products(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast in place what autocast casts in each call: weights of linear layers and convolutions."""
    with torch.inference_mode(mode=False):
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                module.to(dtype)


class LazyBase:
    """A base that is read from disk when it is first needed, and never trained.

    So a recipe can be checked without its weights. It is no part of the task: it is not in
    checkpoints, and every process holds its own.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._network: nn.Module | None = None
        self._products: torch.dtype | None = None
        """What the weights of matrix products were cast to; None: they are as stored."""
        self._decode: Callable[[Tensor], Tensor] | None = None

    def describe(self) -> store.ModelInfo:
        """What is known of it without loading its weights."""
        return describe_base(self._location)[1]

    def record(self) -> BaseRecord:
        """Its model directory and digest."""
        directory, info = describe_base(self._location)
        return BaseRecord(model=directory, digest=info.digest)

    def start(self, control: Control) -> None:
        """Let what the control copies start as the base's weights.

        On the meta device this is noted, and done when the control is given memory: a checkpoint
        that is restored afterwards replaces it.
        """
        own = dict(control.named_parameters())
        for name, there in control.copied():
            computed(own[name], partial(self._weight, there))

    def _weight(self, name: str) -> Tensor:
        weights = self._loaded().state_dict()
        if name not in weights:
            raise UserError(
                f"task.base: {self._location} has no weight {name}; model.base must be its settings"
            )
        return weights[name]

    def __call__(self, like: Tensor) -> Controllable:
        """The network on the device and in the type of a tensor.

        Under autocast the weights of its matrix products have autocast's type already: it keeps no
        casts of frozen weights, and would make them in every call.
        """
        kind = like.device.type
        wanted = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        network = self._network
        if network is None or self._products != wanted:
            network = self._loaded().to(like.device, like.dtype)
            if wanted is not None:
                cast_products(network, wanted)
            self._products = wanted
        assert isinstance(network, Controllable), "a control has a base in two halves"
        return network

    def to_images(self, x: Tensor) -> Tensor:
        """What the base generates as images (B, 3, H, W) in [-1, 1].

        Raises:
            UserError: its first stage is missing or another one.
        """
        if self._decode is None:
            record = self.describe().first_stage
            self._decode = (lambda x: x) if record is None else LatentDecoder(record)
        return self._decode(x).clamp(-1, 1)

    def _loaded(self) -> nn.Module:
        if self._network is None or self._products is not None:
            self._products = None
            directory, _ = describe_base(self._location)
            with torch.inference_mode(mode=False):
                self._network = store.load(directory).requires_grad_(requires_grad=False)
        return self._network
