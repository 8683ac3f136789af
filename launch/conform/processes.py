"""Whether two processes compute the updates of one (an unwrapped module averages no gradients)."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from launch.conform.check import CheckResult
from launch.conform.trained_run import TrainedRun
from launch.errors import Stopped
from launch.train.local import run_ranks
from mezzotint.common.errors import UserError
from models import store
from models.nn.initialization import materialize
from trainer.recipe import Recipe
from trainer.run import RunDirectory
from trainer.tasks.adversarial import AdversarialConfig
from trainer.tasks.contrastive import ContrastiveConfig

SAMPLES = 4
"""Per process."""
STEPS = 2
LARGEST = 1e-3
# With these betas and this epsilon an update is the gradient times the learning rate.
OPTIMIZER = {"lr": {"peak": 0.01, "decay": "constant"}, "betas": [0.0, 0.0], "eps": 1.0}


def same_updates(run: TrainedRun) -> CheckResult:
    """Two updates from new weights by one process and by two, with the same samples, are equal."""
    with tempfile.TemporaryDirectory(prefix="mezzotint-conform-") as directory:
        root = Path(directory)
        one, two = (_updated(run, root / str(count), count) for count in (1, 2))
    relative = relative_difference(_initial(run.recipe), one, two)
    measured = (
        f"{STEPS} updates of {2 * SAMPLES} samples by two processes differ from those of one by "
        f"{relative:.1g} of their norm"
    )
    return CheckResult("two processes update as one", relative <= LARGEST, measured)


def relative_difference(
    start: Mapping[str, Tensor], one: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> float:
    """|one - other| / |one - start| over all weights of `start`."""
    change = torch.cat([(one[name] - start[name]).flatten() for name in start])
    difference = torch.cat([(one[name] - other[name]).flatten() for name in start])
    return float(difference.norm() / change.norm())


def _updated(run: TrainedRun, path: Path, processes: int) -> Mapping[str, Tensor]:
    """The weights after the updates.

    Raises:
        UserError: a process failed, with the end of what it printed.
    """
    short = RunDirectory(path)
    short.claim(_short(run.recipe, processes))
    with (path / "output.txt").open("w+", encoding="utf-8") as output:
        try:
            run_ranks(short, None, processes, output=output)
        except Stopped as stopped:
            output.seek(0)
            said = "".join(output.readlines()[-3:]).strip()
            raise UserError(
                f"{run.directory.path}: {processes} processes could not train: {said}"
            ) from stopped
    return store.load(str(short.model)).state_dict()


def _short(recipe: Recipe, processes: int) -> Recipe:
    """The recipe for a few updates in fp32; what starts late starts at once."""
    tree = recipe.model_dump(mode="json")
    tree |= {"steps": STEPS, "batch": 2 * SAMPLES, "micro_batch": SAMPLES, "ema": None}
    tree |= {"optimizer": OPTIMIZER, "optimizers": {}, "publish": None}
    tree["engine"] |= {"processes": processes, "precision": "fp32", "compile": False}
    tree["engine"] |= {"update": "after_backward", "master_dtype": "fp32"}
    tree["log"]["previews"] = None
    match recipe.task:
        case AdversarialConfig():
            tree["task"] |= {"start_step": 0, "ramp_steps": 0}
        case ContrastiveConfig():  # all images of an update are compared with all its captions
            tree |= {"micro_batch": None, "task": {**tree["task"], "shift": 0, "noise": 0.0}}
        case _:
            pass
    return Recipe.model_validate(tree)


def _initial(recipe: Recipe) -> Mapping[str, Tensor]:
    """The weights from which they start."""
    with torch.device("meta"):
        model = recipe.model.build()
    for _ in materialize(model, recipe.seed, "model", device=torch.device("cpu")):
        pass
    return {name: value.detach() for name, value in model.named_parameters()}
