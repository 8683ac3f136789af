"""The InceptionV3 of FID: the 2015 TensorFlow graph, as pytorch-fid and torch-fidelity name it.

It is torchvision's network with other pooling branches: averages leave padding out, and the last
block takes a maximum (Heusel et al., arXiv 1706.08500, with the published graph's operators).
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from models.torchvision_compat import ensure_torchvision


def fid_inception_v3() -> nn.Module:
    """Images (B, 3, 299, 299) in [-1, 1] to pool3 features (B, 2048)."""
    ensure_torchvision()
    from torchvision.models import inception_v3

    network: nn.Module = inception_v3(aux_logits=False, init_weights=False)
    network.fc = nn.Identity()
    for name, block in network.named_children():
        if hasattr(block, "branch_pool"):
            _replace_pooling(block, _max3 if name == "Mixed_7c" else _mean3)
    return network


def _replace_pooling(block: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
    """Give the convolution of a block's pooling branch `pool` of the block's input."""
    inputs: list[Tensor] = []
    block.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    branch = block.get_submodule("branch_pool")
    branch.register_forward_pre_hook(lambda _, pooled: (pool(inputs.pop()),))


def _mean3(x: Tensor) -> Tensor:
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max3(x: Tensor) -> Tensor:
    return max_pool2d(x, 3, stride=1, padding=1)
