"""An image through a cascade of three diffusion models, beside imagen-pytorch's.

    python -m venv peers_imagen
    peers_imagen/bin/pip install -c constraints.txt torch pydantic numpy safetensors fsspec \\
        pyyaml tokenizers einops pillow tqdm beartype
    peers_imagen/bin/pip install --no-deps imagen-pytorch==2.1.0
    peers_imagen/bin/python benchmarks/cascade.py [--quick] [--only step] [--json FILE]

A caption to 16, 32 and 64 pixels by `CascadeGenerator` and by `Imagen.sample`. Their networks
cannot get each other's weights (imagen-pytorch's have attention by cosine similarity, norms by root
mean square, global context, tokens of the time), so they only have the same widths, resolutions,
residual blocks and levels with attention, and parameters within 2% of each other, which is checked,
as are equal numbers of network calls. Both sample by ancestral steps (DDPM) with guidance at the
base, dynamic thresholding and noise of level 0.2 on what is enlarged. The captions' features are
given. Everything runs in one process on one thread, interleaved.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from peers_diffusion import imagen_pytorch, parameters  # noqa: E402
from timing import Row, Timing, as_table, interleaved, machine, peak_bytes, run_command  # noqa: E402

from mezzotint.inference.cascade import CascadeGenerator, UpsamplingStage  # noqa: E402
from mezzotint.inference.config import CascadeSystem, StageSampling  # noqa: E402
from mezzotint.inference.generator import GenerationRequest, Prompt  # noqa: E402
from mezzotint.inference.runtime import Runtime  # noqa: E402
from models.diffusion.condition import Condition  # noqa: E402
from models.diffusion.unet.network import UNet, UNetConfig  # noqa: E402

GOAL = 1.2
PEER = "imagen-pytorch 2.1.0"
CLOSE = 0.02
SIDES = (16, 32, 64)
MULTIPLIERS = ((1, 2, 3), (1, 2, 4), (1, 2, 4))
STEPS = (25, 10, 10)
GUIDANCE, LEVEL, PERCENTILE = 3.0, 0.2, 0.95
TOKENS, FEATURES = 32, 256
DEPTH, HEADS = 2, 8
KINDS = {"fp32": ("fp32", "fp32"), "bf16": ("bf16", "bf16"), "bf16 against fp32": ("bf16", "fp32")}


@dataclass(frozen=True)
class Captions:
    """Stands for a frozen text encoder: the same features of every caption."""

    features: Tensor
    """(1, L, D)."""

    def __call__(self, cond: Condition, captions: Sequence[str]) -> Condition:
        """The condition with features, and those of an empty caption."""
        features = self.features.expand(len(captions), -1, -1)
        return replace(cond, features=features, empty_features=torch.zeros_like(features[0]))


def awake(network: nn.Module) -> nn.Module:
    """In evaluation, with the layers that start at 0 away from it."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if not bool(weight.any()):
                weight.add_(torch.randn(weight.shape, generator=rng) * 0.02)
    return network.eval()


def calls_of(layers: Sequence[nn.Module], work: Callable[[], object]) -> int:
    """How often one run calls any of them."""
    count = 0

    def called(*_: object) -> None:
        nonlocal count
        count += 1

    hooks = [each.register_forward_hook(called) for each in layers]
    work()
    for hook in hooks:
        hook.remove()
    return count


@dataclass(frozen=True)
class Cascade:
    """One library's: its networks, and an image by them in a precision."""

    name: str
    networks: Sequence[nn.Module]
    last: Sequence[nn.Module]
    """Their last layers, each called once by a call of its network."""
    sample: Callable[[str], Tensor]
    call: Callable[[int, str], Tensor]
    """One call of a stage's network."""


def own_cascade(channels: int, steps: Sequence[int], features: Tensor) -> Cascade:
    """`CascadeGenerator` of UNets that read captions at the lowest resolution."""
    networks: list[UNet] = []
    for index, (side, multipliers) in enumerate(zip(SIDES, MULTIPLIERS, strict=True)):
        low = {
            "size": SIDES[index - 1],
            "augmentation": {"kind": "gaussian", "max_level": 1.0},
            "condition_on_noise_level": True,
        }
        config = UNetConfig.model_validate(
            {
                "image_size": side,
                "channels": channels,
                "multipliers": multipliers,
                "depth": DEPTH,
                "attention": (side // 4,),
                "heads": HEADS,
                "groups": 16,
                "resampling": "convolution",
                "features": {"width": FEATURES},
                "low_resolution": low if index else None,
            }
        )
        torch.manual_seed(index)
        networks.append(awake(config.build()))  # type: ignore[arg-type]
    text: Any = Captions(features)
    shared = {
        "solver": {"kind": "ddpm"},
        "thresholding": {"kind": "dynamic", "percentile": PERCENTILE},
    }
    sampling = [
        StageSampling.model_validate({**shared, "steps": count, **more})
        for count, more in zip(
            steps, ({"guidance": GUIDANCE}, {"level": LEVEL}, {"level": LEVEL}), strict=True
        )
    ]
    config = CascadeSystem(
        base="base",
        upsamplers=("first", "second"),
        base_sampling=sampling[0],
        upsampler_sampling=tuple(sampling[1:]),
    )
    stages = tuple(
        UpsamplingStage(f"upsamplers.{index}", network, text)
        for index, network in enumerate(networks[1:])
    )
    request = GenerationRequest(prompts=(Prompt("a caption"),))

    def sample(kind: str) -> Tensor:
        runtime = Runtime.of("cpu", "bf16" if kind == "bf16" else "fp32")
        cascade = CascadeGenerator(config, networks[0], stages, text, runtime)
        return cascade.generate(request).images

    @torch.no_grad()
    def call(index: int, kind: str) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            x, low = noise(index)
            level = torch.tensor([LEVEL])
            cond = Condition(low_res=low, noise_level=None if low is None else level)
            return networks[index](x, torch.tensor([0.5]), text(cond, ["a caption"]))

    return Cascade("mezzotint", networks, [each.out for each in networks], sample, call)


def peer_cascade(channels: int, steps: Sequence[int], features: Tensor) -> Cascade:
    """`Imagen` of networks of the same widths."""
    package = imagen_pytorch()
    lowest = (False, False, True)
    networks = []
    for index, multipliers in enumerate(MULTIPLIERS):
        torch.manual_seed(index)
        networks.append(
            package.Unet(
                dim=channels,
                dim_mults=multipliers,
                num_resnet_blocks=DEPTH,
                layer_attns=lowest,
                layer_cross_attns=lowest,
                attn_heads=HEADS,
                text_embed_dim=FEATURES,
                max_text_len=TOKENS,
                lowres_cond=index > 0,
            )
        )
    imagen = package.Imagen(
        networks,
        image_sizes=SIDES,
        timesteps=tuple(steps),
        text_embed_dim=FEATURES,
        lowres_sample_noise_level=LEVEL,
        dynamic_thresholding_percentile=PERCENTILE,
    )
    awake(imagen)

    def sample(kind: str) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            return imagen.sample(
                text_embeds=features,
                cond_scale=(GUIDANCE, 1.0, 1.0),
                cfg_remove_parallel_component=False,
                use_tqdm=False,
            )

    @torch.no_grad()
    def call(index: int, kind: str) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            x, low = noise(index)
            time = torch.tensor([0.5])
            more: dict[str, Tensor] = {}
            if low is not None:
                large = nn.functional.interpolate(low, x.shape[2:], mode="nearest")
                more = {"lowres_cond_img": large, "lowres_noise_times": torch.tensor([LEVEL])}
            mask = torch.ones(1, TOKENS, dtype=torch.bool)
            return imagen.unets[index](x, time, text_embeds=features, text_mask=mask, **more)

    networks = list(imagen.unets)
    return Cascade(PEER, networks, [each.final_conv for each in networks], sample, call)


def noise(index: int) -> tuple[Tensor, Tensor | None]:
    """A stage's noisy image, and the one that it enlarges."""
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(1, 3, SIDES[index], SIDES[index], generator=rng)
    low = torch.randn(1, 3, SIDES[index - 1], SIDES[index - 1], generator=rng)
    return x, low if index else None


def checked_alike(ours: Cascade, peer: Cascade) -> dict[str, object]:
    """Parameters by stage, the calls of one image and their shapes.

    Raises:
        SystemExit: parameters are more than 2% apart, or the calls are not equal.
    """
    counts = {each.name: [parameters(one) for one in each.networks] for each in (ours, peer)}
    calls = {
        each.name: calls_of(each.last, lambda each=each: each.sample("fp32"))
        for each in (ours, peer)
    }
    for one, other in zip(*counts.values(), strict=True):
        if abs(one / other - 1) > CLOSE:
            raise SystemExit(f"parameters differ by more than {CLOSE:.0%}: {one:,} and {other:,}")
    if len(set(calls.values())) > 1:
        raise SystemExit(f"not the same number of network calls: {calls}")
    return {"parameters": counts, "network_calls": calls}


def rows_of(
    what: str, timings: Mapping[str, Timing], kinds: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Ours against theirs."""
    return [
        asdict(
            Row.of(
                f"{what}, {kind}",
                timings[f"mezzotint {KINDS[kind][0]}"],
                timings[f"{PEER} {KINDS[kind][1]}"],
                GOAL,
                rounds,
            )
        )
        for kind in kinds
    ]


def both(
    what: str, cascades: Sequence[Cascade], run: Callable[[Cascade, str], object], rounds: int
) -> dict[str, object]:
    """Times and peaks of something in fp32 and bf16."""
    work = {
        f"{each.name} {kind}": lambda each=each, kind=kind: run(each, kind)
        for each in cascades
        for kind in ("fp32", "bf16")
    }
    timings = interleaved(work, rounds)
    peaks = {who: peak_bytes(once) for who, once in work.items()}
    rows = rows_of(what, timings, tuple(KINDS), rounds)
    for kind in ("fp32", "bf16"):
        pair = peaks[f"mezzotint {kind}"], peaks[f"{PEER} {kind}"]
        rows.append(asdict(Row.of_counts(f"{what}, peak of {kind}", *pair, 1.0)))
    return {
        "seconds": as_table(timings),
        "peak_mib": {who: value / 2**20 for who, value in peaks.items()},
        "rows": rows,
    }


def measure(*, quick: bool, only: str | None) -> dict[str, object]:
    """Everything, as one tree."""
    torch.set_num_threads(1)
    rounds, steps = (1, (2, 2, 2)) if quick else (7, STEPS)
    features = torch.randn(1, TOKENS, FEATURES, generator=torch.Generator().manual_seed(3))
    ours, peer = (make(64, steps, features) for make in (own_cascade, peer_cascade))
    found: dict[str, object] = {"machine": machine(), **checked_alike(ours, peer)}
    if only in (None, "image"):
        name = f"an image by {' + '.join(map(str, steps))} steps"
        found["image"] = both(name, (ours, peer), lambda each, kind: each.sample(kind), rounds)
    if only in (None, "step"):
        for index, side in enumerate(SIDES):
            found[f"step_{side}"] = both(
                f"a call at {side} pixels", (ours, peer),
                lambda each, kind, index=index: each.call(index, kind), rounds,
            )  # fmt: skip
    return found


if __name__ == "__main__":
    run_command(__doc__.split("\n")[0], ("image", "step"), measure)
