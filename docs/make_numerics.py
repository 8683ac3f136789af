"""The figures of docs/numerics.md:  .venv/bin/python docs/make_numerics.py

Needs matplotlib (the `tracking` extra brings it). No data, two minutes on one core. Trains the fp16
stack of tests/integration/underflow.py with one gradient scale and with one per residual branch,
and in 32 bits for comparison; then the prior of tests/integration/states.py with the optimizer
inside backward, with fp32 states, and with bf16 ones that are rounded to nearest. Writes
docs/images/numerics-underflow.png and numerics-in-backward.png, and prints the figures.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "integration"))
import states
import underflow

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

IMAGES = Path(__file__).parent / "images"
UPDATES, LONG = 200, 400
STYLES = {
    "fp32": ("32 bits", "0.55", "--"),
    "one scale": ("fp16, one scale", "tab:red", "-"),
    "per block": ("fp16, a scale per branch", "tab:blue", "-"),
}


KINDS = {
    "in backward": ("inside backward, bf16 (6 bytes)", "tab:blue", "-"),
    "bf16, nearest": ("bf16 rounded to nearest (6 bytes)", "tab:red", "-"),
    "fp32": ("fp32 weights and moments (12 bytes)", "0.1", ":"),
}


def smooth(values: list[float], width: int = 9) -> torch.Tensor:
    """Running means of an odd number of values, with the first and the last one around them."""
    padded = torch.tensor([values[0]] * (width // 2) + values + [values[-1]] * (width // 2))
    return padded.unfold(0, width, 1).mean(1)


def draw_losses(axes: Axes, runs: dict[str, underflow.Course]) -> None:
    for name, run in runs.items():
        label, color, style = STYLES[name]
        axes.plot(run.losses, color=color, alpha=0.2, linewidth=1)
        axes.plot(smooth(run.losses), style, color=color, label=label, linewidth=2)
    axes.set(title="Loss of the last exit", xlabel="update", ylabel="nats per sample", ylim=(0, 4))
    axes.legend(frameon=False, loc="lower left")


def draw_zeros(axes: Axes, runs: dict[str, underflow.Course]) -> None:
    for index, name in enumerate(("one scale", "per block")):
        label, color, _ = STYLES[name]
        proportions = [100 * proportion for proportion in runs[name].zeros]
        where = [block + 1 + 0.4 * (index - 0.5) for block in range(len(proportions))]
        bars = axes.bar(where, proportions, width=0.38, color=color, label=label)
        texts = ["0" if proportion == 0 else f"{proportion:.0f}" for proportion in proportions]
        axes.bar_label(bars, texts, padding=2, fontsize=8, color=color)
    axes.set(title="Gradients of weights that are exactly 0", xlabel="block", ylabel="%")
    axes.set_ylim(0, 112)
    axes.legend(frameon=False, loc="upper left")


def draw_scales(axes: Axes, runs: dict[str, underflow.Course]) -> None:
    powers = runs["per block"].scales
    where = [1 + branch / 2 for branch in range(len(powers))]
    axes.plot(where, powers, "o-", color="tab:blue", label="of each branch")
    axes.axhline(runs["one scale"].scales[0], color="tab:red", label="the one scale")
    for bound in (underflow.RULE.lowest, underflow.RULE.highest):
        axes.axhline(bound, color="0.7", linewidth=1, linestyle=":")
    axes.set(title="Scales at the end", xlabel="block", ylabel="power of two", ylim=(5, 26))
    axes.set_yticks(range(6, 26, 3))
    axes.legend(frameon=False, loc="center right")


def draw_underflow(out: Path) -> None:
    runs = {name: underflow.train(name, UPDATES) for name in STYLES}
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    draw_losses(axes[0], runs)
    draw_zeros(axes[1], runs)
    draw_scales(axes[2], runs)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "numerics-underflow.png", dpi=110)
    print("| | loss at the end | updates skipped | zero gradients by block, % |\n|---|---|---|---|")
    for name, run in runs.items():
        end = sum(run.losses[-20:]) / 20
        proportions = ", ".join(f"{100 * proportion:.3g}" for proportion in run.zeros)
        print(f"| {STYLES[name][0]} | {end:.2f} | {run.skipped} | {proportions} |")


def draw_states(out: Path) -> None:
    losses = {name: states.train(name, LONG) for name in KINDS}
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    plain = smooth(losses["fp32"], 25)
    for name, (label, color, style) in KINDS.items():
        curve = smooth(losses[name], 25)
        axes[0].plot(curve, style, color=color, label=label, linewidth=2)
        axes[1].plot(100 * (curve / plain - 1), style, color=color, linewidth=2)
    axes[0].set(title="Loss of a small prior", xlabel="update", ylabel="nats per code")
    axes[0].legend(frameon=False)
    axes[1].set(title="Distance from fp32 states", xlabel="update", ylabel="% of the loss")
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "numerics-in-backward.png", dpi=110)
    print("| states | mean loss of the last 100 updates | against fp32 |\n|---|---|---|")
    ends = {name: sum(each[-100:]) / 100 for name, each in losses.items()}
    for name, end in ends.items():
        print(f"| {KINDS[name][0]} | {end:.4f} | {100 * (end / ends['fp32'] - 1):+.2f}% |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the figures of docs/numerics.md.")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the figures")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    draw_underflow(out)
    draw_states(out)


if __name__ == "__main__":
    main()
