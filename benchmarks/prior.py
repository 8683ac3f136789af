"""The transformer prior beside DALLE-pytorch and x-transformers: one step, its memory, sampling.

    python -m venv peers
    peers/bin/pip install -c constraints.txt torch pydantic numpy 'setuptools<81' einops
    peers/bin/pip install -c constraints.txt x-transformers==2.31.10 axial-positional-embedding \\
        rotary-embedding-torch
    peers/bin/pip install --no-deps dalle-pytorch==1.6.6
    peers/bin/python benchmarks/prior.py [--quick] [--json FILE]

The peers get the prior's weights through a converter and must give its outputs and gradients before
anything is timed (`peers_prior.py` says what is set and replaced in them for that). Everything runs
in one process, interleaved; where the spread is too large no ratio is called a result.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from peers_prior import DallePytorch, XTransformers  # noqa: E402
from timing import Row, Timing, as_lines, as_table, interleaved, machine, peak_bytes  # noqa: E402

from models.autoregressive.decoding import Sampling, generate  # noqa: E402
from models.autoregressive.patterns import joint_mask  # noqa: E402
from models.autoregressive.prior import Prior, PriorConfig, weighted  # noqa: E402
from models.autoregressive.sparse import attend_blocks, attend_dense  # noqa: E402
from models.nn.cpu.dispatch import attention  # noqa: E402

Peer = DallePytorch | XTransformers
GOALS = {"step fp32": 1.7, "step bf16": 2.7, "sample fp32": 1.9, "sample bf16": 3.4}
MEMORY = 0.35
"""The goal for the peak of a step, as a share of the best peer's."""


@dataclass(frozen=True)
class Shape:
    """What is measured."""

    config: PriorConfig
    batch: int
    samples: int
    rounds: int


def shapes(*, quick: bool) -> Shape:
    """6 layers x 256, 4 heads x 64, 64 text and 256 image positions, vocabularies of 8,192."""
    side, layers, vocab = (4, 2, 512) if quick else (16, 6, 8192)
    config = PriorConfig(
        text_vocab=vocab + side * side // 4,
        text_length=side * side // 4,
        image_vocab=vocab,
        grid=(side, side),
        width=256,
        layers=layers,
    )
    return Shape(config, batch=4, samples=2, rounds=3 if quick else 7)


def new_prior(config: PriorConfig) -> Prior:
    """With the exact GELU of the peers, and no biases where x-transformers has none."""
    torch.manual_seed(0)
    prior = config.build()
    for block in prior.blocks:
        block.feed_forward.gelu = "none"
    with torch.no_grad():
        for weight in prior.parameters():
            if weight.ndim == 2:
                weight.mul_(2)  # far enough from uniform that the most probable code is certain
    return prior


def inputs(shape: Shape, count: int) -> tuple[Tensor, Tensor]:
    """Captions without empty positions (the packages number those differently) and codes."""
    rng = torch.Generator().manual_seed(1)
    config = shape.config
    known = config.text_vocab - config.text_length
    text = torch.randint(1, known, (count, config.text_length), generator=rng)
    return text, torch.randint(config.image_vocab, (count, config.image_length), generator=rng)


def own_loss(prior: Prior, text: Tensor, codes: Tensor) -> Tensor:
    """Of one step."""
    return weighted(prior(text, codes, codes))


def parity(prior: Prior, peer: Peer, shape: Shape) -> dict[str, float]:
    """The largest difference of logits, of the loss, and of gradients relative to their size."""
    text, codes = inputs(shape, 2)
    prior.zero_grad()
    peer.model.zero_grad()
    with torch.no_grad():
        ours = prior(text, codes)
        theirs = peer.logits(text, codes)
    logits = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    loss, other = own_loss(prior, text, codes), peer.loss(text, codes)
    loss.backward()
    other.backward()
    gradients = max(
        float((theirs - ours).norm() / ours.norm()) for theirs, ours in peer.gradients()
    )
    sampled = generate(prior, text, torch.Generator().manual_seed(0), sampling=Sampling(top_k=1))
    equal = float((peer.sample(text) == sampled).float().mean())
    found = {
        "logits": logits,
        "loss": abs(float(loss.detach() - other.detach())),
        "gradients": gradients,
        "equal_codes": equal,
    }
    if logits > 1e-3 or found["loss"] > 1e-5 or gradients > 1e-4 or equal < 1:
        raise SystemExit(f"{peer.name} computes something else: {found}; no ratio is printed")
    prior.zero_grad()
    peer.model.zero_grad()
    return found


def step(model: torch.nn.Module, loss: Callable[[], Tensor], *, bf16: bool) -> None:
    """Forward, loss, backward; the optimizer, the same for all, is left out."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        value = loss()
    value.backward()


def training(prior: Prior, peers: list[Peer], shape: Shape) -> dict[str, Callable[[], None]]:
    """Steps by name."""
    text, codes = inputs(shape, shape.batch)
    work: dict[str, Callable[[], None]] = {}
    for kind in ("fp32", "bf16"):
        bf16 = kind == "bf16"
        work[f"mezzotint {kind}"] = lambda bf16=bf16: step(
            prior, lambda: own_loss(prior, text, codes), bf16=bf16
        )
        for peer in peers:
            work[f"{peer.name} {kind}"] = lambda peer=peer, bf16=bf16: step(
                peer.model, lambda: peer.loss(text, codes), bf16=bf16
            )
    return work


def sampling_work(prior: Prior, peers: list[Peer], shape: Shape) -> dict[str, Callable[[], object]]:
    """Sampling of whole grids by name, the most probable code each time, as in the parity check."""
    text, _ = inputs(shape, shape.samples)
    cast = new_prior(shape.config).bfloat16().eval()
    greedy = Sampling(top_k=1)

    def own(model: Prior) -> Tensor:
        return generate(model, text, torch.Generator().manual_seed(0), sampling=greedy)

    work: dict[str, Callable[[], object]] = {
        "mezzotint fp32": lambda: own(prior),
        "mezzotint bf16": lambda: own(cast),
    }
    for peer in peers:
        work[f"{peer.name} fp32"] = lambda peer=peer: peer.sample(text)
    return work


def rivals(timings: dict[str, Timing]) -> dict[str, Timing]:
    """The peers in fp32, the first the fastest."""
    found = {
        name: each
        for name, each in timings.items()
        if not name.startswith("mezzotint") and name.endswith("fp32") and "shipped" not in name
    }
    return dict(sorted(found.items(), key=lambda item: item[1].median))


def rows_of(kind: str, timings: dict[str, Timing], rounds: int) -> list[dict[str, object]]:
    """Of the fastest peer in fp32 to ours."""
    best = next(iter(rivals(timings).values()))
    return [
        asdict(Row.of(name, timings[f"mezzotint {precision}"], best, GOALS[name], rounds))
        for precision in ("fp32", "bf16")
        for name in (f"{kind} {precision}",)
    ]


def sparse(*, quick: bool, rounds: int) -> dict[str, object]:
    """What masks save at the paper's 257 + 1,023 positions: scores, cache entries, time, bytes."""
    side, prefix = (8, 17) if quick else (32, 257)
    length = prefix + side * side - 1
    config = PriorConfig(
        text_vocab=9, text_length=prefix - 1, image_vocab=8, grid=(side, side), layers=64,
        mask_flavor="paper", mask_kernel=3 if quick else 11,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(3, 2, 4, length, 64, generator=rng).requires_grad_()

    def run(way: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: way(*x).sum().backward()

    work = {"dense, causal": run(lambda q, k, v: attention(q, k, v, causal=True))}
    table: dict[str, dict[str, object]] = {}
    causal = int(joint_mask(None, prefix, length).sum())
    for pattern in dict.fromkeys(config.patterns):
        assert pattern is not None
        kept = prefix + pattern.cache_size(side * side)
        table[pattern.name] = {
            "layers": config.patterns.count(pattern),
            "scores_of_causal": int(joint_mask(pattern, prefix, length).sum()) / causal,
            "cache_entries": kept,
        }
        for name, way in (("masked", attend_dense), ("blocks", attend_blocks)):
            work[f"{pattern.name}, {name}"] = run(
                lambda q, k, v, way=way, pattern=pattern: way(q, k, v, prefix, pattern)
            )
    timings = interleaved(work, rounds)
    return {
        "attention_alone": as_table(timings),
        "peak_mib": {name: peak_bytes(each) / 2**20 for name, each in work.items()},
        "patterns": table,
    }


def whole(*, quick: bool, rounds: int) -> dict[str, object]:
    """A small prior at those positions, dense and with the paper's masks: a step, and sampling."""
    side, text = (8, 16) if quick else (32, 256)
    work: dict[str, Callable[[], object]] = {}
    steps: dict[str, Callable[[], object]] = {}
    rng = torch.Generator().manual_seed(3)
    captions = torch.randint(1, 512, (2, text), generator=rng)
    codes = torch.randint(512, (2, side * side), generator=rng)
    sampled = side * side // 8  # the last eighth of an image, whose caches are fullest
    for flavor in ("dense", "paper"):
        config = PriorConfig(
            text_vocab=512, text_length=text, image_vocab=512, grid=(side, side), layers=4,
            mask_flavor=flavor,
        )  # fmt: skip
        torch.manual_seed(0)
        prior = config.build()
        steps[f"{flavor}, step"] = lambda prior=prior: step(
            prior, lambda: own_loss(prior, captions, codes), bf16=False
        )
        work[f"{flavor}, {sampled} codes"] = lambda prior=prior: generate(
            prior,
            captions,
            torch.Generator().manual_seed(0),
            sampling=Sampling(),
            prefix=codes[:, :-sampled],
        )
    return {
        "seconds": as_table(interleaved(steps | work, rounds)),
        "step_peak_mib": {name: peak_bytes(each) / 2**20 for name, each in steps.items()},
    }


def measure(*, quick: bool) -> dict[str, object]:
    """Everything, as one tree."""
    shape = shapes(quick=quick)
    prior = new_prior(shape.config)
    peers: list[Peer] = [
        DallePytorch(prior),
        XTransformers(prior, flash=False),
        XTransformers(prior, flash=True),
    ]
    dalle = peers[0]
    assert isinstance(dalle, DallePytorch)
    shipped = dalle.model.forward_with_cond_scale
    dalle.mend_the_cache()
    checked = {peer.name: parity(prior, peer, shape) for peer in peers}
    counts = {peer.name: sum(p.numel() for p in peer.model.parameters() if p.requires_grad)
              for peer in peers}  # fmt: skip
    counts["mezzotint"] = sum(p.numel() for p in prior.parameters())
    work = training(prior, peers, shape)
    steps = interleaved(work, shape.rounds)
    memory = {name: peak_bytes(each) / 2**20 for name, each in work.items()}
    prior.eval()
    sample_work = sampling_work(prior, peers, shape)
    mended = dalle.model.forward_with_cond_scale

    def as_shipped() -> None:
        dalle.model.forward_with_cond_scale = shipped
        dalle.sample(inputs(shape, shape.samples)[0])
        dalle.model.forward_with_cond_scale = mended

    samples = interleaved(sample_work, shape.rounds)
    samples |= interleaved({f"{dalle.name} as shipped fp32": as_shipped}, 1)
    tokens = shape.samples * shape.config.image_length
    best = min(value for name, value in memory.items() if "mezzotint" not in name
               and name.endswith("fp32"))  # fmt: skip
    return {
        "machine": machine(),
        "shape": shape.config.model_dump(mode="json") | {"batch": shape.batch},
        "parameters": counts,
        "parity": checked,
        "step": as_table(steps),
        "best_peers": {"step": next(iter(rivals(steps))), "sample": next(iter(rivals(samples)))},
        "step_peak_mib": memory,
        "memory_share": memory["mezzotint fp32"] / best,
        "sample": as_table(samples),
        "sample_tokens_per_second": {name: tokens / each.median for name, each in samples.items()},
        "sparse": sparse(quick=quick, rounds=shape.rounds),
        "sparse_whole": whole(quick=quick, rounds=shape.rounds),
        "rows": [
            *rows_of("step", steps, shape.rounds),
            asdict(Row.of_counts("memory", memory["mezzotint fp32"], best, 1 / MEMORY)),
            *rows_of("sample", samples, shape.rounds),
        ],
    }


def report(found: dict[str, object]) -> str:
    """For people: one line a figure."""
    lines: list[str] = []

    def walk(value: object, path: str) -> None:
        if isinstance(value, dict):
            if set(value) == {"median", "minimum", "spread", "cpu"}:
                lines.append(
                    f"{path}: {1e3 * value['median']:.1f} ms (least {1e3 * value['minimum']:.1f}, "
                    f"spread {value['spread']:.2f}, processor {1e3 * value['cpu']:.1f})"
                )
                return
            for key, each in value.items():
                walk(each, f"{path} · {key}" if path else key)
        else:
            lines.append(f"{path}: {value:.4g}" if isinstance(value, float) else f"{path}: {value}")

    walk({key: value for key, value in found.items() if key != "rows"}, "")
    return "\n".join([*lines, *as_lines(found["rows"])])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything there")
    parser.add_argument("--threads", type=int, help="torch's threads")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(quick=options.quick)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(report(found))


if __name__ == "__main__":
    main()
