"""The dVAE and the EMA quantiser beside DALLE-pytorch and vector-quantize-pytorch: one step.

    python -m venv peers
    peers/bin/pip install -c constraints.txt torch pydantic numpy packaging einops 'setuptools<81'
    peers/bin/pip install -c constraints.txt axial-positional-embedding rotary-embedding-torch
    peers/bin/pip install -c constraints.txt vector-quantize-pytorch==1.32.0
    peers/bin/pip install --no-deps dalle-pytorch==1.6.6
    peers/bin/python benchmarks/autoencoders.py [--quick] [--json FILE]

The peers get our weights and must give our outputs, and our gradients or our updated codebook,
before anything is timed (`peers_autoencoders.py` says what is set in them for that). A step is
forward, loss, backward and the codebook's update; the optimizer, the same for all, is left out.
Everything runs in one process, interleaved; where the spread is too large there is no verdict.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from peers_autoencoders import (  # noqa: E402
    DallePytorch,
    VectorQuantizePytorch,
    count,
    in_its_shape,
    own_loss,
    relative,
)
from timing import Row, as_lines, as_table, interleaved, machine, peak_bytes  # noqa: E402

from models.autoencoders.dvae import DVAE  # noqa: E402
from models.autoencoders.quantizer import EmaVectorQuantizer, EmaVectorQuantizerConfig  # noqa: E402

GOALS = {"dvae fp32": 1.2, "dvae bf16": 2.0, "ema quantiser": 3.0}


@dataclass(frozen=True)
class Shape:
    """What is measured: the package's default network, and a codebook."""

    image: int = 64
    vocab: int = 8192
    width: int = 64
    codebook: int = 512
    halvings: int = 3
    batch: int = 16
    codes: int = 8192
    channels: int = 64
    side: int = 32
    maps: int = 4
    rounds: int = 9


QUICK = Shape(image=32, vocab=512, batch=4, codes=512, side=8, rounds=3)


def refuse(name: str, found: dict[str, float], **limits: float) -> dict[str, float]:
    """The differences, if none is over its limit."""
    if any(found[key] > limit for key, limit in limits.items()):
        raise SystemExit(f"{name} computes something else: {found}; no ratio is printed")
    return found


def dvae_parity(ours: DVAE, peer: DallePytorch, image: Tensor) -> dict[str, float]:
    """Differences of the logits, the image, the loss, and the gradients relative to their size."""

    def rng() -> torch.Generator:
        return torch.Generator().manual_seed(2)

    with torch.no_grad(), peer.our_noise(rng()):
        logits = (peer.model((image + 1) / 2, return_logits=True) - ours.logits(image)).abs().max()
        output = (peer.model((image + 1) / 2) - ours(image, rng()).output).abs().max()
    loss = own_loss(ours, image, rng())
    loss.backward()
    with peer.our_noise(rng()):
        other = peer.loss(image)
    other.backward()
    found = {
        "logits": float(logits),
        "output": float(output),
        "loss": abs(float(loss.detach() - other.detach())),
        "gradients": relative(peer.pairs(gradients=True)),
    }
    return refuse(peer.name, found, logits=1e-5, output=1e-5, loss=1e-5, gradients=1e-4)


def dvae_work(ours: DVAE, peer: DallePytorch, image: Tensor) -> dict[str, Callable[[], None]]:
    """Steps by name."""
    rng = torch.Generator().manual_seed(3)

    def run(model: torch.nn.Module, loss: Callable[[], Tensor], *, bf16: bool) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()

    work: dict[str, Callable[[], None]] = {}
    for kind in ("fp32", "bf16"):
        bf16 = kind == "bf16"
        work[f"mezzotint {kind}"] = lambda bf16=bf16: run(
            ours, lambda: own_loss(ours, image, rng), bf16=bf16
        )
        work[f"{peer.name} {kind}"] = lambda bf16=bf16: run(
            peer.model, lambda: peer.loss(image), bf16=bf16
        )
    return work


def dvae(shape: Shape) -> dict[str, object]:
    """One training step, in fp32 and under bf16 autocast."""
    ours = in_its_shape(
        image=shape.image, vocab=shape.vocab, width=shape.width, codebook=shape.codebook,
        halvings=shape.halvings,
    )  # fmt: skip
    peer = DallePytorch(
        ours, width=shape.width, codebook=shape.codebook, halvings=shape.halvings, batch=shape.batch
    )
    rng = torch.Generator().manual_seed(1)
    image = torch.rand(shape.batch, 3, shape.image, shape.image, generator=rng) * 2 - 1
    checked = dvae_parity(ours, peer, image)
    work = dvae_work(ours, peer, image)
    timings = interleaved(work, shape.rounds)
    best = timings[f"{peer.name} fp32"]
    return {
        "parameters": {"mezzotint": count(ours), peer.name: count(peer.model)},
        "parity": checked,
        "step": as_table(timings),
        "step_peak_mib": {name: peak_bytes(each) / 2**20 for name, each in work.items()},
        "rows": [
            asdict(Row.of(name, timings[f"mezzotint {kind}"], best, GOALS[name], shape.rounds))
            for kind in ("fp32", "bf16")
            for name in (f"dvae {kind}",)
        ],
    }


def own_step(ours: EmaVectorQuantizer, h: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Codes, their vectors, the loss; backward and the codebook's update are done."""
    h.grad = None
    latent = ours(h, rng)
    (latent.value.square().mean() + latent.loss).backward()
    assert latent.statistics is not None
    assert latent.codes is not None
    ours.commit(latent.statistics, rng)
    return latent.codes, latent.value.detach(), latent.loss.detach()


def peer_step(peer: VectorQuantizePytorch, h: Tensor) -> tuple[Tensor, ...]:
    """The same; the package updates its codebook in the forward."""
    h.grad = None
    value, codes, loss = peer.model(h)
    (value.square().mean() + loss.sum()).backward()
    return codes, value.detach(), loss.detach().sum()


def quantizer(shape: Shape) -> dict[str, object]:
    """One step of the EMA quantiser: codes, gradient, codebook update."""
    torch.manual_seed(0)
    config = EmaVectorQuantizerConfig(codes=shape.codes, restart=None)
    ours = config.build(shape.channels)
    peer = VectorQuantizePytorch(ours)
    rng = torch.Generator().manual_seed(1)
    h = torch.randn(shape.maps, shape.channels, shape.side, shape.side, generator=rng)
    own_h, peer_h = h.clone().requires_grad_(), h.clone().requires_grad_()
    codes, value, loss = own_step(ours, own_h, rng)
    other_codes, other_value, other_loss = peer_step(peer, peer_h)
    assert own_h.grad is not None
    assert peer_h.grad is not None
    checked = refuse(
        peer.name,
        {
            "codes": float((codes != other_codes).float().mean()),
            "value": float((value - other_value).abs().max()),
            "loss": abs(float(loss - other_loss)),
            "gradients": relative(iter([(peer_h.grad, own_h.grad)])),
            "codebook": relative(peer.pairs()),
        },
        codes=0, value=1e-5, loss=1e-5, gradients=1e-5, codebook=1e-5,
    )  # fmt: skip
    work: dict[str, Callable[[], object]] = {
        "mezzotint": lambda: own_step(ours, own_h, rng),
        peer.name: lambda: peer_step(peer, peer_h),
    }
    timings = interleaved(work, shape.rounds)
    return {
        "parity": checked,
        "step": as_table(timings),
        "step_peak_mib": {name: peak_bytes(each) / 2**20 for name, each in work.items()},
        "rows": [
            asdict(
                Row.of(name, timings["mezzotint"], timings[peer.name], GOALS[name], shape.rounds)
            )
            for name in ("ema quantiser",)
        ],
    }


def measure(shape: Shape) -> dict[str, object]:
    """Everything, as one tree."""
    found: dict[str, object] = {"machine": machine(), "shape": asdict(shape)}
    parts = {"dvae": dvae(shape), "quantizer": quantizer(shape)}
    rows = [row for part in parts.values() for row in part.pop("rows")]
    load = [round(each, 2) for each in os.getloadavg()]
    return found | parts | {"load_after": load, "rows": rows}


def report(found: dict[str, object]) -> str:
    """For people: the rows, and what they rest on."""
    lines = [f"{key}: {found[key]}" for key in ("machine", "load_after", "shape")]
    for part in ("dvae", "quantizer"):
        facts = found[part]
        lines += [f"{part} {key}: {value}" for key, value in facts.items() if key != "step"]
        lines += [
            f"{part} {name}: {1e3 * each['median']:.1f} ms (least {1e3 * each['minimum']:.1f}, "
            f"spread {each['spread']:.2f}, processor {1e3 * each['cpu']:.1f})"
            for name, each in facts["step"].items()
        ]
    lines += as_lines(found["rows"])
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything there")
    parser.add_argument("--threads", type=int, help="torch's threads")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(QUICK if options.quick else Shape())
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(report(found))


if __name__ == "__main__":
    main()
