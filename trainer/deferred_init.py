"""Networks whose weights are written down instead of held: how each one is drawn, not its numbers.

Inside a sketch large tensors are made without memory, and what is done to them is noted, with the
state of the random generator where numbers are drawn. The draws happen nevertheless, one tensor at
a time, and are thrown away: all numbers are those of a network that is built whole from the same
seed. A weight is drawn again when it is wanted, to be cut into shards at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from mezzotint.common.errors import UserError
from models.nn.cpu import malloc

SMALL = 1 << 12
"""Tensors below this many numbers are simply held."""


@dataclass
class _Memory:
    """What would be one piece of memory, and what has been done to it."""

    name: int
    size: int
    dtype: torch.dtype
    origin: "_Deed | None" = None
    """What it came out of; None: uninitialised."""
    place: int = 0
    """Which of the results of its origin it is."""
    whole: "_View | None" = None
    """That result in it."""
    deeds: list["_Deed"] = field(default_factory=list)

    def draw(self) -> Tensor:
        """Its numbers, in one row."""
        row = torch.empty(self.size, dtype=self.dtype, device="cpu")
        if self.origin is not None and self.whole is not None:
            self.whole.of(row).copy_(tree_leaves(self.origin.do(None, None))[self.place])
        for deed in self.deeds:
            deed.do(self, row)
        return row

    def so_far(self) -> "_Memory":
        """It as it is now, whatever is done to it later."""
        return replace(self, deeds=list(self.deeds))


@dataclass(frozen=True)
class _View:
    """A tensor in a piece of memory."""

    memory: _Memory
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, row: Tensor) -> Tensor:
        return row.as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class _Deed:
    """One operation of torch, with views for the tensors that are only written down."""

    operation: Callable[..., Any]
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    random: Tensor | None
    """The generator's state before it."""

    def do(self, own: _Memory | None, row: Tensor | None) -> Any:  # noqa: ANN401 - torch's results
        """Do it, on `row` where it speaks of the memory `own`, or of it as it was."""

        def real(value: Any) -> Any:  # noqa: ANN401 - any argument of an operation
            if not isinstance(value, _View):
                return value
            if row is not None and own is not None and value.memory.name == own.name:
                return value.of(row)
            return value.of(value.memory.draw())

        options = dict(self.options)
        if self.random is not None:
            options["generator"] = Generator()
            options["generator"].set_state(self.random)
        with torch.no_grad():
            return self.operation(*tree_map(real, self.inputs), **tree_map(real, options))


class Sketch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Build a network inside `with sketch:`; its large tensors are then on the meta device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memories: dict[int, _Memory] = {}
        self._alive: list[Tensor] = []

    def draw(self, tensor: Tensor) -> Tensor:
        """The numbers of a tensor that was made inside, on the CPU.

        Raises:
            UserError: nothing has filled it. `nn.init.trunc_normal_` and `orthogonal_` do nothing
                to tensors without memory.
        """
        if not tensor.is_meta:
            return tensor.detach()
        view = self._view(tensor)
        if view.memory.origin is None and not view.memory.deeds:
            raise UserError(
                f"engine.zero: a weight of shape {list(tensor.shape)} is begun in a way that "
                "cannot be done in shards; use a stage below 3"
            )
        return view.of(view.memory.draw()).contiguous()

    def fill(self, module: nn.Module) -> None:
        """Hold all weights and buffers of a network after all."""
        for weight in module.parameters():
            self.hold(weight)
        self.fill_buffers(module)

    def hold(self, weight: nn.Parameter) -> None:
        """Hold one weight after all; the object stays the same."""
        if weight.is_meta:
            held = nn.Parameter(self.draw(weight), requires_grad=weight.requires_grad)
            torch.utils.swap_tensors(weight, held)  # type: ignore[no-untyped-call]

    def fill_buffers(self, module: nn.Module) -> None:
        """Hold a network's buffers after all."""
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                if buffer.is_meta:
                    persistent = name not in owner._non_persistent_buffers_set
                    owner.register_buffer(name, self.draw(buffer), persistent=persistent)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's operation
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's results
        """Note what concerns a large tensor; everything else is done."""
        options = kwargs or {}
        known = [each for each in tree_leaves((args, options)) if self._knows(each)]
        if not known:
            result = None
            if func is torch.ops.aten.empty.memory_format and _is_large(args[0], options):
                options = {**options, "device": torch.device("meta")}
                result = func(*args, **options)
                self._note(result, None, 0)
            return func(*args, **options) if result is None else result
        if func is torch.ops.aten._local_scalar_dense.default:
            return func(self.draw(args[0]))
        return self._written(func, args, options, known[0])

    def _written(
        self,
        func: Any,  # noqa: ANN401 - torch's operation
        args: tuple[Any, ...],
        options: dict[str, Any],
        first: Tensor,
    ) -> Any:  # noqa: ANN401 - torch's results
        """Find the shapes of the results, and note how their numbers come about."""
        own = self._view(first).memory if func._schema.is_mutable else None
        random = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            generator = options.get("generator") or torch.default_generator
            random = generator.get_state()
            _advance(func, args, options)

        def noted(value: Any) -> Any:  # noqa: ANN401 - any argument of an operation
            if not self._knows(value):
                return value
            view = self._view(value)
            if view.memory is own:
                return view
            return _View(view.memory.so_far(), view.shape, view.stride, view.offset)

        deed = _Deed(func, tree_map(noted, args), tree_map(noted, options), random)
        result = func(*args, **options)
        if own is not None:
            own.deeds.append(deed)
        for place, each in enumerate(tree_leaves(result)):
            if isinstance(each, Tensor) and each.is_meta and not self._knows(each):
                self._note(each, deed, place)
        return result

    def _knows(self, value: object) -> bool:
        return (
            isinstance(value, Tensor)
            and value.is_meta
            and value.untyped_storage()._cdata in self._memories
        )

    def _view(self, tensor: Tensor) -> _View:
        memory = self._memories[tensor.untyped_storage()._cdata]
        offset = int(tensor.storage_offset())
        return _View(memory, tuple(tensor.shape), tensor.stride(), offset)

    def _note(self, tensor: Tensor, origin: _Deed | None, place: int) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes() // tensor.element_size()
        memory = _Memory(storage._cdata, size, tensor.dtype, origin, place)
        self._memories[storage._cdata] = memory
        memory.whole = self._view(tensor)
        self._alive.append(tensor)  # an address names its memory as long as it is taken


def _advance(func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Draw the numbers of an operation and forget them."""

    def scratch(value: Any) -> Any:  # noqa: ANN401 - any argument of an operation
        if isinstance(value, Tensor) and value.is_meta:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
        return value

    func(*tree_map(scratch, args), **options)
    malloc.malloc_trim()


def _is_large(shape: Sequence[int], options: dict[str, Any]) -> bool:
    """Whether an uninitialised tensor is to be written down: floating, on the CPU."""
    dtype = options.get("dtype") or torch.get_default_dtype()
    device = options.get("device") or torch.get_default_device()
    size = torch.Size(shape).numel()
    return size >= SMALL and dtype.is_floating_point and torch.device(device).type == "cpu"
