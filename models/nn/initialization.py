"""Initial values of parameters and buffers, one at a time and independent of their order.

Constructors declare a tensor's initial values where torch's default for the layer is not used. On a
real device a declaration fills its tensor at once. On the meta device it is only noted, and
`materialize` fills the tensors afterwards, each from a generator keyed by a seed and the tensor's
name: the numbers depend on no order, no rank and no sharding.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Generator, Tensor, nn

from mezzotint.common.keyed_random import keyed_generator

Initializer = Callable[[Tensor, Generator | None], object]
"""Fills a CPU tensor in position; without a generator from torch's global one."""
_ATTRIBUTE = "initializer"


def declare(tensor: Tensor, initializer: Initializer) -> None:
    """Note how a parameter or buffer starts (the last declaration counts); fill it unless meta."""
    vars(tensor)[_ATTRIBUTE] = initializer
    if not tensor.is_meta:
        with torch.no_grad():
            initializer(tensor, None)


def normal(tensor: Tensor, std: float) -> None:
    """Start from N(0, std^2)."""
    declare(tensor, lambda value, rng: value.normal_(0.0, std, generator=rng))


def uniform(tensor: Tensor, bound: float) -> None:
    """Start from the uniform distribution on [-bound, bound)."""
    declare(tensor, lambda value, rng: value.uniform_(-bound, bound, generator=rng))


def xavier_uniform(matrix: Tensor) -> None:
    """Start a matrix by Glorot and Bengio's uniform distribution (2010, eq. 16)."""
    uniform(matrix, (6.0 / (matrix.shape[0] + matrix.shape[1])) ** 0.5)


def constant(tensor: Tensor, number: float) -> None:
    """Start from one number."""
    declare(tensor, lambda value, rng: value.fill_(number))


def zero_last_inputs(layer: nn.Conv2d, count: int) -> None:
    """Start the last `count` input channels of a convolution from 0, the others as without them."""
    bound = layer.weight[0, :-count].numel() ** -0.5

    def fill(value: Tensor, rng: Generator | None) -> None:
        value.uniform_(-bound, bound, generator=rng)[:, -count:] = 0.0

    declare(layer.weight, fill)
    uniform(layer.bias, bound) if layer.bias is not None else None


def computed(tensor: Tensor, compute: Callable[[], Tensor]) -> None:
    """Start from a table, which `compute` makes on the CPU."""
    declare(tensor, lambda value, rng: value.copy_(compute()))


def initializer_of(owner: nn.Module, name: str) -> Initializer:
    """The declared initialiser of a tensor that `owner` holds directly, or torch's default.

    Raises:
        TypeError: nothing is declared, and the layer is none whose default is known.
    """
    tensor: Tensor = getattr(owner, name)
    declared: Initializer | None = vars(tensor).get(_ATTRIBUTE)
    if declared is not None:
        return declared
    match owner:
        case nn.Linear() | nn.Conv2d() | nn.ConvTranspose2d():
            bound = owner.weight[0].numel() ** -0.5
            return lambda value, rng: value.uniform_(-bound, bound, generator=rng)
        case nn.Embedding() if owner.padding_idx is None:
            return lambda value, rng: value.normal_(generator=rng)
        case nn.LayerNorm() | nn.GroupNorm() | nn.RMSNorm():
            number = float(name == "weight")
            return lambda value, rng: value.fill_(number)
        case _:
            raise TypeError(f"{type(owner).__name__}.{name}: declare its initial values")


def materialize(
    module: nn.Module,
    seed: int,
    *labels: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Iterator[nn.Parameter]:
    """Move a module to a device and yield its parameters, each as soon as it is there.

    A tensor on the meta device is filled first, on the CPU and in fp32, from the generator of
    (seed, labels, its name). What the caller does with a parameter it has got, such as sharding it,
    happens before the next one has memory. Buffers come last; they keep their type.
    """
    plan = [
        (path, owner, name, initializer_of(owner, name) if tensor.is_meta else None)
        for path, owner, name, tensor in _tensors(module, "_parameters")
    ]
    moved: dict[int, nn.Parameter] = {}
    for path, owner, name, initializer in plan:
        before: nn.Parameter = getattr(owner, name)
        if id(before) in moved:  # shared with an earlier module
            setattr(owner, name, moved[id(before)])
            continue
        after = before
        if initializer is None:
            after.data = before.detach().to(device, dtype)
        else:
            rng = keyed_generator(seed, *labels, path)
            after = nn.Parameter(
                _filled(before, initializer, rng).to(device, dtype), before.requires_grad
            )
        moved[id(before)] = after
        setattr(owner, name, after)
        yield after
    for path, owner, name, tensor in list(_tensors(module, "_buffers")):
        value = tensor
        if tensor.is_meta:
            rng = keyed_generator(seed, *labels, path)
            value = _filled(tensor, initializer_of(owner, name), rng)
        setattr(owner, name, value.to(device))


def assign_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Give a module on the meta device the tensors of its state dict, which are not copied.

    Parameters are cast to `dtype`, one after the other. Buffers that are not in a state dict are
    computed.

    Raises:
        RuntimeError: the names or shapes are not those of the module.
    """
    module.load_state_dict(state, strict=True, assign=True)
    for _ in materialize(module, 0, device=device, dtype=dtype):
        pass


def _tensors(module: nn.Module, kind: str) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    for prefix, owner in module.named_modules():
        for name, tensor in getattr(owner, kind).items():
            if tensor is not None:
                yield f"{prefix}.{name}".removeprefix("."), owner, name, tensor


def _filled(tensor: Tensor, initializer: Initializer, rng: Generator) -> Tensor:
    value = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    with torch.no_grad():
        initializer(value, rng)
    return value
