"""diffusers' ControlNet beside ours, and a FLOP counter that sees attention on a CPU."""

from collections.abc import Iterator
from typing import Any

import torch
from peers_diffusion import Diffusers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from models.diffusion.condition import Condition
from models.diffusion.control.network import UNetControl
from models.diffusion.unet.diffusers import to_diffusers


class DiffusersControl:
    """`ControlNetModel` with our weights beside a frozen `UNet2DConditionModel`."""

    def __init__(self, ours: UNetControl, base: Diffusers) -> None:
        from diffusers import ControlNetModel

        self.ours, self.base = ours, base
        self.name = "diffusers ControlNetModel"
        self.model: nn.Module = ControlNetModel.from_unet(
            base.model,
            conditioning_embedding_out_channels=ours.config.hint.chosen_widths,
            conditioning_channels=ours.config.hint.channels,
        )
        self.model.load_state_dict(self._renamed(ours.state_dict()), strict=True)

    def call(self, x: Tensor, step: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, C, H, W) at steps (B,), from 0, to the noise (train_controlnet.py's step)."""
        skips, middle = self.model(
            x,
            step,
            encoder_hidden_states=condition.features,
            controlnet_cond=condition.hints[0],
            return_dict=False,
        )
        return self.base.model(
            x,
            step,
            encoder_hidden_states=condition.features,
            down_block_additional_residuals=skips,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]

    def gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Its gradients beside ours (after backward through both)."""
        own = {name: weight.grad for name, weight in self.ours.named_parameters()}
        theirs = dict(self.model.named_parameters())
        for name, gradient in self._renamed(own).items():
            yield theirs[name].grad, gradient

    def _renamed(self, tensors: dict[str, Any]) -> dict[str, Tensor]:
        """Tensors with our names under theirs."""
        start = "encoder."
        copied = {
            name.removeprefix(start): value
            for name, value in tensors.items()
            if name.startswith(start)
        }
        whole = {**self.base.ours.state_dict(), **copied}
        known = dict(self.model.named_parameters())
        found = {
            name: value
            for name, value in to_diffusers(whole, self.ours.config.base).items()  # type: ignore[arg-type]
            if name in known
        }
        layers, zeros = len(self.ours.hint.layers), len(self.ours.zero)
        embedding = "controlnet_cond_embedding"
        ends = {0: f"{embedding}.conv_in", layers - 1: f"{embedding}.conv_out"}
        for part in ("weight", "bias"):
            for number in range(layers):
                theirs = ends.get(number, f"{embedding}.blocks.{number - 1}")
                found[f"{theirs}.{part}"] = tensors[f"hint.layers.{number}.{part}"]
            for number in range(zeros):
                last = number == zeros - 1
                theirs = "controlnet_mid_block" if last else f"controlnet_down_blocks.{number}"
                found[f"{theirs}.{part}"] = tensors[f"zero.{number}.{part}"]
        return found


def flop_counter() -> FlopCounterMode:
    """Counts fused attention on a CPU too, of which torch's own counter sees nothing."""

    def attention(
        query: Any,  # noqa: ANN401
        key: Any,  # noqa: ANN401
        value: Any,  # noqa: ANN401
        *args: object,
        out_shape: object = None,
        **settings: object,
    ) -> int:
        return int(sdpa_flop_count(query, key, value))

    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: attention})
