"""Training that goes on from a trained network."""

from functools import cache, partial

import torch
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models import store
from models.nn.initialization import computed
from trainer.tasks.base_model import describe_base


def start_from(model: nn.Module, location: str) -> None:
    """Let a network start from the weights of a model directory or training run.

    Input channels of a convolution that it has and the other lacks, as for inpainting, start at 0.
    On the meta device this is noted, and done when the network is given memory: a checkpoint that
    is restored afterwards replaces it.

    Raises:
        UserError: there is no model, or one of other weights.
    """
    directory, info = describe_base(location, key="task.start")
    with torch.device("meta"):
        other = dict(info.config.build().named_parameters())
    for name, parameter in model.named_parameters():
        if name not in other or not _fits(other[name].shape, parameter.shape):
            found = tuple(other[name].shape) if name in other else "nothing"
            raise UserError(
                f"task.start: {location} has {found} for the weight {name} of shape "
                f"{tuple(parameter.shape)}; name a model of the same settings, but for inputs"
            )
        computed(parameter, partial(_padded, directory, name, parameter.shape))


def _fits(there: torch.Size, here: torch.Size) -> bool:
    """Whether shapes are equal, but for missing input channels of a convolution."""
    fewer = len(here) == 4 and len(there) == 4 and there[1] < here[1]
    return there == here or (fewer and (there[0], there[2:]) == (here[0], here[2:]))


def _padded(directory: str, name: str, shape: torch.Size) -> Tensor:
    weight = _weights(directory)[name]
    if weight.shape == shape:
        return weight
    padded = weight.new_zeros(shape)
    padded[:, : weight.shape[1]] = weight
    return padded


@cache
def _weights(directory: str) -> dict[str, Tensor]:
    return dict(store.load(directory).state_dict())
