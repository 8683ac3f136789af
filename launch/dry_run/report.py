"""What a recipe would do, worked out without starting anything."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launch.slurm.config import Cluster, JobResources, memory_bytes
from launch.submit.plan import job_script, recipe_job, run_directory
from mezzotint.common.errors import UserError
from models.autoregressive.prior import PriorConfig
from models.config import text_shape
from trainer.engine_config import (
    check_numerics,
    check_update,
    chosen_precision,
    deepspeed_config,
    prepare,
    resolve_precision,
)
from trainer.memory_estimate import (
    Footprint,
    Sizes,
    checkpoint_bytes,
    footprint,
    sizes,
    start_bytes,
    states,
)
from trainer.recipe import Precision, Recipe, dump
from trainer.run import RunDirectory


@dataclass(frozen=True)
class Machines:
    """What the recipe would run on."""

    nodes: int
    processes: int
    processes_per_node: int
    device: str
    """`gpu` or `cpu`."""
    precision: Precision
    memory: int | None
    """Bytes a process may fill (of its GPU, or its share of the node's memory), where known."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, without activations."""

    parts: Mapping[str, Footprint]
    total: int
    """All parts, an upper bound."""
    start: int
    """What it holds for a while at its start, before its engines: whole networks in fp32, or what
    is kept of the model (shards under ZeRO-3), whose weights are drawn one by one."""
    largest_layer: int
    """Numbers of the largest layer, which ZeRO-3 gathers whole."""
    available: int | None
    fits: bool | None
    """Whether total and start are below what is available; None where that is not known."""


@dataclass(frozen=True)
class DryRunReport:
    """A dry run: `parameters` by part and submodule, exact, counted on the meta device."""

    recipe: Mapping[str, Any]
    resolved: str
    parameters: Mapping[str, Mapping[str, int]]
    total: int
    block_matrices: Mapping[str, int]
    """Weights in the matrices of a transformer's blocks, by part."""
    steps: int
    per_step: Mapping[str, int]
    machines: Machines
    memory: Memory
    checkpoint_bytes: int
    deepspeed: Mapping[str, Any]
    """DeepSpeed's JSON by part."""
    job_script: str | None
    """What `mezzotint submit` would hand to SLURM; None without a cluster."""
    notes: tuple[str, ...]
    """What `mezzotint submit` would refuse."""
    writes: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON object."""
        tree = asdict(self)
        del tree["resolved"]
        return json.dumps(tree, indent=1)


def dry_run(
    recipe: Recipe,
    runs: Path,
    *,
    processes: int | None = None,
    cluster: Cluster | None = None,
    nodes: int | None = None,
) -> DryRunReport:
    """Resolve, count and plan; nothing is started and nothing is written.

    For a cluster's training job (on `nodes` nodes, by default as many as the cluster file says), or
    for `processes` processes on this machine.

    Raises:
        UserError: the global batch cannot be shared by that many processes.
        UserError: settings of both kinds of machine at once.
    """
    machines, shape = _machines(recipe, processes, cluster, nodes)
    micro = recipe.micro_batch_for(machines.processes)
    with torch.device("meta"):
        parts = recipe.task.build(recipe.model.build()).parts()
    prepare(parts, recipe)
    for name in parts:
        check_numerics(recipe, name, machines.precision)
        check_update(recipe, name, machines.precision, machines.processes)
    run = RunDirectory(runs / recipe.name)
    numbers = {name: sizes(part) for name, part in parts.items()}
    script: str | None = None
    notes: tuple[str, ...] = ()
    if cluster is not None and shape is not None:
        script, notes = _job(recipe, runs, cluster, shape)
    return DryRunReport(
        recipe=recipe.model_dump(mode="json"),
        resolved=dump(recipe),
        parameters=_parameters(parts),
        total=sum(weight.numel() for part in parts.values() for weight in part.parameters()),
        block_matrices=_block_matrices(parts),
        steps=recipe.steps,
        per_step=_per_step(recipe, micro, machines.processes),
        machines=machines,
        memory=_memory(recipe, numbers, machines),
        checkpoint_bytes=sum(
            checkpoint_bytes(part, states(recipe, name, machines.precision), machines.processes)
            for name, part in numbers.items()
        ),
        deepspeed={
            name: deepspeed_config(recipe, name, machines.processes, machines.precision)
            for name in parts
        },
        job_script=script,
        notes=notes,
        writes=tuple(
            str(path)
            for path in (run.recipe, run.metrics, run.checkpoints, run.previews, run.model)
        ),
    )


def _machines(
    recipe: Recipe, processes: int | None, cluster: Cluster | None, nodes: int | None
) -> tuple[Machines, JobResources | None]:
    """Where the recipe would run; on a cluster with GPUs, `auto` is taken for bf16."""
    wanted = recipe.engine.precision
    if cluster is None:
        if nodes is not None:
            raise UserError("--nodes: needs --cluster, whose nodes it counts")
        count = processes or 1
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = resolve_precision(wanted, device)
        kind = "gpu" if device.type == "cuda" else "cpu"
        return Machines(1, count, count, kind, precision, None), None
    if processes is not None:
        raise UserError("--processes: the cluster file says how many; use --nodes")
    shape = cluster.training_resources(nodes)
    if shape.gpus_per_node:
        precision = chosen_precision(wanted, gpu=True, bf16=True)
        memory = cluster.gpu_memory and memory_bytes(cluster.gpu_memory)
    else:
        precision = resolve_precision(wanted, torch.device("cpu"))
        memory = cluster.memory and memory_bytes(cluster.memory) // shape.tasks_per_node
    device_kind = "gpu" if shape.gpus_per_node else "cpu"
    return Machines(
        shape.nodes, shape.tasks, shape.tasks_per_node, device_kind, precision, memory or None
    ), shape


def _parameters(parts: Mapping[str, nn.Module]) -> dict[str, dict[str, int]]:
    """Numbers by part and submodule, frozen ones too; a submodule without any is left out."""
    counted = {
        part: {
            name: sum(weight.numel() for weight in child.parameters())
            for name, child in module.named_children()
        }
        | {name: weight.numel() for name, weight in module.named_parameters(recurse=False)}
        for part, module in parts.items()
    }
    return {part: {name: n for name, n in each.items() if n} for part, each in counted.items()}


def _block_matrices(parts: Mapping[str, nn.Module]) -> dict[str, int]:
    """The effective size of a transformer (12 width^2 a layer), where a part is one."""
    found = {}
    for name, part in parts.items():
        blocks = dict(part.named_children()).get("blocks")
        if blocks is not None:
            found[name] = sum(weight.numel() for weight in blocks.parameters() if weight.ndim == 2)
    return found


def _per_step(recipe: Recipe, micro: int, processes: int) -> dict[str, int]:
    per_step = {
        "images": recipe.batch,
        "samples per forward": micro,
        "forwards per process": recipe.batch // (micro * processes),
    }
    shape = text_shape(recipe.model)
    if shape is not None:
        per_step["text tokens"] = recipe.batch * shape.length
    if isinstance(recipe.model, PriorConfig):
        per_step["image tokens"] = recipe.batch * recipe.model.image_length
    return per_step


def _memory(recipe: Recipe, numbers: Mapping[str, Sizes], machines: Machines) -> Memory:
    hows = {name: states(recipe, name, machines.precision) for name in numbers}
    world = machines.processes
    parts = {name: footprint(part, hows[name], world) for name, part in numbers.items()}
    total = reduce(Footprint.__add__, parts.values()).total
    model = next(iter(numbers))  # the recipe's; other parts are built whole by the task
    start = sum(
        start_bytes(part, hows[name], world, drawn=name == model) for name, part in numbers.items()
    )
    available = machines.memory
    return Memory(
        parts=parts,
        total=total,
        start=start,
        largest_layer=max(part.largest_layer for part in numbers.values()),
        available=available,
        fits=None if available is None else max(total, start) <= available,
    )


def _job(
    recipe: Recipe, runs: Path, cluster: Cluster, shape: JobResources
) -> tuple[str, tuple[str, ...]]:
    """The script, and what submit would object to."""
    notes: tuple[str, ...] = ()
    try:
        root = run_directory(runs, recipe.name, cluster)
    except UserError as error:
        root, notes = (runs / recipe.name).absolute(), (str(error),)
    return job_script(recipe_job(recipe, root, shape), cluster).text, notes
