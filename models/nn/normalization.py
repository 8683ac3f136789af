"""Group norm with the shift, the modulation and the SiLU around it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.cpu import dispatch


def norm_act(
    norm: nn.GroupNorm,
    x: Tensor,
    *,
    silu: bool,
    input_bias: Tensor | None = None,
    scale_shift: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """norm(x + input_bias) (1 + scale) + shift of x (B, C, H, W), and SiLU of it if `silu`.

    `input_bias`, scale and shift are (B, C). With an `input_bias`, x may be changed in position:
    nothing else is to read it.
    """
    fused = dispatch.fused_group_norm(
        norm, x, silu=silu, input_bias=input_bias, scale_shift=scale_shift
    )
    if fused is not None:
        return fused
    y = x if input_bias is None else x.add_(input_bias.to(x.dtype)[:, :, None, None])
    y = dispatch.plain_group_norm(norm, y)
    if scale_shift is not None:
        scale, shift = (each.to(x.dtype)[:, :, None, None] for each in scale_shift)
        y = y * (1 + scale) + shift
    # backward reads the input of SiLU
    return F.silu(y, inplace=not torch.is_grad_enabled()) if silu else y
