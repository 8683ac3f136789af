"""Whether a new control learns in the order that its zero convolutions allow."""

import torch
from torch import nn

from launch.conform.check import CheckResult
from launch.conform.trained_run import PlainEngine, TrainedRun
from models.diffusion.control.network import Control
from models.nn.initialization import materialize
from trainer.setup import open_inputs
from trainer.tasks.control import ControlTaskConfig

SAMPLES = 4
STEP = 1e-2
ORDER = (
    frozenset({"zero layers"}),
    frozenset({"zero layers", "copy", "last layer of the hint"}),
    frozenset({"zero layers", "copy", "last layer of the hint", "hint"}),
)
"""What has a gradient at each of the first steps."""


def zero_convolution_order(run: TrainedRun) -> CheckResult | None:
    """At step 1 only the zero layers have a gradient, at step 2 the copy, at step 3 the hint."""
    if not isinstance(run.recipe.task, ControlTaskConfig):
        return None
    task = open_inputs(run.recipe).task
    control = task.parts()["model"]
    assert isinstance(control, Control), "the part of this task"
    for _ in materialize(control, run.recipe.seed, "model", device=run.device):
        pass
    named = {name: each for name, each in control.named_parameters() if each.requires_grad}
    found = []
    for number in range(len(ORDER)):
        batch, step = run.batch(SAMPLES, number * SAMPLES), run.step(number)
        loss = next(iter(task.losses({"model": PlainEngine(control)}, batch, step)))
        gradients = torch.autograd.grad(
            loss.value, list(named.values()), allow_unused=True, materialize_grads=True
        )
        largest = max(float(each.abs().max()) for each in gradients)
        with torch.no_grad():
            for weight, gradient in zip(named.values(), gradients, strict=True):
                weight.sub_(gradient * (STEP / largest))
        found.append(
            frozenset(
                _group(control, name)
                for name, gradient in zip(named, gradients, strict=True)
                if bool(gradient.any())
            )
        )
    decoder = {"decoder"} if control.decoder is not None else set()
    passed = all(each - decoder == wanted for each, wanted in zip(found, ORDER, strict=True))
    words = (f"step {number}: {', '.join(sorted(each))}" for number, each in enumerate(found, 1))
    return CheckResult("zero convolutions open in order", passed, "; ".join(words))


def _group(control: Control, name: str) -> str:
    """The part of a control that a parameter belongs to."""
    part, _, rest = name.partition(".")
    match part:
        case "zero":
            return "zero layers"
        case "encoder":
            return "copy"
        case "hint":
            layers = control.hint.layers
            assert isinstance(layers, nn.ModuleList), "made as one"
            return "last layer of the hint" if rest.split(".")[1] == str(len(layers) - 1) else part
        case _:
            return part
