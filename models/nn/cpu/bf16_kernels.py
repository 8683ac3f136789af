"""Linear layers and attention of a decoding step in bf16 on a CPU, at memory bandwidth.

The kernel is `bf16_kernels.c`, which installing the project compiles where there are a C compiler
and Python's headers. Without it, or without AVX-512, torch's operators do (`linear.MkldnnLinear`).
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from models.nn.cpu import is_enabled
from models.nn.cpu.linear import Gelu, cast

KERNEL = False
"""Whether the kernel was compiled and this machine can run it."""
if find_spec("models.nn.cpu._bf16_kernels"):
    from models.nn.cpu import _bf16_kernels

    KERNEL = _bf16_kernels.serves()

MATRIX_UNITS = bool(torch.cpu.get_capabilities().get("amx_bf16"))
"""Whether the CPU has matrix units for bf16 (AMX)."""
OUTPUTS = 32
"""Outputs per block of the kernel."""
MAX_ROWS = 8
"""Rows whose sums fit the processor's registers."""
HEAD_WIDTHS = (32, 64, 128)
"""Head widths that attention is compiled for."""
SINGLE_THREAD_NUMEL = 2**21
"""Larger weights and caches are left to torch, which has threads: the kernel has none."""


class Avx512Linear:
    """A layer for up to 8 rows in bf16, with a copy of its weights in the order of reading."""

    def __init__(self, layer: nn.Linear) -> None:
        self._outputs, self._inputs = layer.weight.shape
        self._weight = pack_pairs(layer.weight.detach().to(torch.bfloat16))
        # as bf16 would hold it, in the precision of the sums
        self._bias = layer.bias.detach().to(torch.bfloat16).float()

    def __call__(self, x: Tensor) -> Tensor:
        """The layer of (B, in), summed in fp32 and rounded once: (B, out) in bf16."""
        return self._compute(_bf16_kernels.linear, x, None)

    def gelu(self, x: Tensor, approximate: Gelu) -> Tensor:
        """GELU of the layer, which is not rounded before: (B, out)."""
        form = _bf16_kernels.tanh_linear if approximate == "tanh" else _bf16_kernels.erf_linear
        return self._compute(form, x, None)

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        """The layer added to (B, out), and not rounded before where that is bf16 too."""
        if to.dtype != torch.bfloat16:
            return to + self(x)
        return self._compute(_bf16_kernels.linear, x, to.contiguous())

    def _compute(self, form: Callable[..., None], x: Tensor, to: Tensor | None) -> Tensor:
        x = cast(x, torch.bfloat16).contiguous()
        rows = len(x)
        # the kernel does not check its arguments, and has no backward
        assert not x.requires_grad
        assert rows <= MAX_ROWS
        assert x.shape[1] == self._inputs
        out = x.new_empty(rows, self._outputs)
        assert to is None or to.shape == out.shape
        form(
            x.data_ptr(),
            self._weight.data_ptr(),
            self._bias.data_ptr(),
            0 if to is None else to.data_ptr(),
            out.data_ptr(),
            rows,
            self._inputs,
            self._outputs,
        )
        return out

    @staticmethod
    def is_supported(weight: Tensor, rows: int) -> bool:
        """Whether the kernel supports these weights and this number of rows."""
        return (
            KERNEL
            and is_enabled("avx512")
            and weight.device.type == "cpu"
            and rows <= MAX_ROWS
            and len(weight) % OUTPUTS == 0
            and _suits_one_thread(weight)
        )


def pack_pairs(weight: Tensor) -> Tensor:
    """(out, in) as the kernel reads it: (out / 32, in, 16, 2), with n and n + 16 side by side."""
    blocks = weight.view(-1, 2, OUTPUTS // 2, weight.shape[1])
    return blocks.permute(0, 3, 2, 1).contiguous()


class Avx512Attention:
    """Attention of one query to keys and values in bf16."""

    def __init__(self, store: Tensor) -> None:
        self._store = store
        # the kernel rounds their number up to a register
        self._scores = store.new_empty(store.shape[3] + 16, dtype=torch.float32)

    def __call__(self, qkv: Tensor, slot: int, count: int) -> Tensor:
        """See `dispatch.cached_attention`; scores, softmax and sums are in fp32."""
        _, batch, heads, slots, width = self._store.shape
        qkv = cast(qkv, torch.bfloat16).contiguous()
        # the kernel does not check its arguments, and has no backward
        assert not qkv.requires_grad
        assert qkv.shape == (batch, 3, heads, 1, width)
        assert 0 <= slot < slots
        assert 0 < count <= slots
        out = qkv.new_empty(batch, heads, 1, width)
        _bf16_kernels.attend(
            qkv.data_ptr(),
            self._store.data_ptr(),
            self._scores.data_ptr(),
            out.data_ptr(),
            batch,
            heads,
            slots,
            width,
            slot,
            count,
        )
        return out

    @staticmethod
    def is_supported(store: Tensor) -> bool:
        """Whether it is the fastest way for keys and values (2, B, H, slots, C) like these."""
        return (
            has_attention(store.shape[-1])
            and store.device.type == "cpu"
            and store.dtype == torch.bfloat16
            and (_suits_one_thread(store) or not MATRIX_UNITS)
        )


def has_attention(head_width: int) -> bool:
    """Whether the kernel supports heads of this width."""
    return KERNEL and is_enabled("avx512") and head_width in HEAD_WIDTHS


def _suits_one_thread(numbers: Tensor) -> bool:
    return numbers.numel() <= SINGLE_THREAD_NUMEL or torch.get_num_threads() == 1
