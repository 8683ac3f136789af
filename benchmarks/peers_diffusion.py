"""The UNets of diffusers, denoising-diffusion-pytorch and imagen-pytorch beside ours.

diffusers' get our weights by `models.diffusion.unet.diffusers` and compute the same function: their
outputs and gradients are compared before anything is timed. The other two have layers that ours
has not (linear attention, weight standardisation, memory tokens), so they are only brought to about
the same number of parameters, and compared by FLOP too.
"""

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.diffusion.condition import Condition
from models.diffusion.unet.diffusers import to_diffusers
from models.diffusion.unet.diffusers_settings import settings_of
from models.diffusion.unet.network import UNet

STEPS = 1000


class Diffusers:
    """`UNet2DModel` or `UNet2DConditionModel` with our weights, shapes and functions."""

    def __init__(self, ours: UNet) -> None:
        import diffusers

        settings = settings_of(ours.config)
        kind = getattr(diffusers, settings.pop("_class_name"))
        self.ours, self.name = ours, f"diffusers {kind.__name__}"
        self.model: nn.Module = kind(**settings)
        self.model.load_state_dict(to_diffusers(ours.state_dict(), ours.config), strict=True)

    def call(self, x: Tensor, step: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, C, H, W) at steps (B,), from 0, to the noise."""
        if condition.features is not None:
            return self.model(x, step, condition.features).sample
        return self.model(x, step).sample

    def gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Its gradients beside ours (after backward through both)."""
        own = {name: weight.grad for name, weight in self.ours.named_parameters()}
        assert all(gradient is not None for gradient in own.values())
        theirs = dict(self.model.named_parameters())
        for name, gradient in to_diffusers(own, self.ours.config).items():  # type: ignore[arg-type]
            yield theirs[name].grad, gradient


class Stub(types.ModuleType):
    """A module that has whatever it is asked for: what the packages import for other purposes."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def bare(package: str, *stubs: str) -> Iterator[None]:
    """Lets modules of `package` be imported without running its __init__, others as stubs."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    inside = types.ModuleType(package)
    inside.__path__ = [str(Path(spec.origin).parent)]
    added = {package: inside}
    for name in stubs:
        if name not in sys.modules:
            added[name] = Stub(name)
            added[name].__spec__ = ModuleSpec(name, None)
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


class DdpmPytorch:
    """`denoising_diffusion_pytorch.Unet`: linear attention at every level but the last."""

    name = "denoising-diffusion-pytorch 2.3.4"

    def __init__(self, dim: int, multipliers: tuple[int, ...]) -> None:
        stubs = ("torchvision", "torchvision.transforms", "accelerate", "ema_pytorch")
        with bare("denoising_diffusion_pytorch", *stubs):
            found = importlib.import_module(
                "denoising_diffusion_pytorch.denoising_diffusion_pytorch"
            )
        self.model: nn.Module = found.Unet(dim, dim_mults=multipliers, flash_attn=True)

    def call(self, x: Tensor, step: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, 3, H, W) at steps (B,) to the noise."""
        return self.model(x, step)


def imagen_pytorch() -> Any:  # noqa: ANN401
    """The module `imagen_pytorch.imagen_pytorch`, without what it imports for other purposes."""
    name = "imagen_pytorch.imagen_pytorch"
    stubs = ("torchvision", "torchvision.transforms", "kornia", "kornia.augmentation")
    with bare("imagen_pytorch", *stubs):
        reader: Any = types.ModuleType("imagen_pytorch.t5")
        reader.DEFAULT_T5_NAME = ""
        reader.t5_encode_text = reader.get_encoded_dim = lambda name: 768
        sys.modules["imagen_pytorch.t5"] = reader
        return importlib.import_module(name)


class ImagenPytorch:
    """`imagen_pytorch.Unet`, on captions' features, or unconditional."""

    name = "imagen-pytorch 2.1.0"

    def __init__(self, dim: int, multipliers: tuple[int, ...], context: int | None) -> None:
        found = imagen_pytorch()
        last = (False,) * (len(multipliers) - 1) + (True,)
        self.model: nn.Module = found.Unet(
            dim=dim,
            dim_mults=multipliers,
            num_resnet_blocks=2,
            layer_attns=last,
            layer_cross_attns=last if context else False,
            cond_on_text=context is not None,
            text_embed_dim=context or 768,
        )

    def call(self, x: Tensor, step: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, 3, H, W) at steps (B,) to the noise."""
        times = step / STEPS
        if condition.features is None:
            return self.model(x, times)
        return self.model(x, times, text_embeds=condition.features)


Peer = Diffusers | DdpmPytorch | ImagenPytorch


def parameters(model: nn.Module) -> int:
    """How many there are."""
    return sum(weight.numel() for weight in model.parameters())


def relative(pairs: Iterator[tuple[Tensor, Tensor]]) -> float:
    """The largest difference of a pair, relative to the size of the second.

    Sizes below a thousandth of the mean size count as that: the gradient of a key's bias is 0, and
    what is computed is rounding.
    """
    both = [(float((one - two).norm()), float(two.norm())) for one, two in pairs]
    least = sum(size for _, size in both) / len(both) / 1000
    return max(difference / max(size, least) for difference, size in both)


def steps_of(count: int) -> Tensor:
    """Steps (count,), from 0, spread over the process."""
    return torch.linspace(0, STEPS - 1, count).round().long()
