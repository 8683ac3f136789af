"""`mezzotint check`: what a recipe would run and need, without starting anything."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launch.dry_run.buckets import BucketCounts, bucket_counts
from launch.dry_run.captions import CaptionLengths, caption_lengths
from launch.slurm.config import Cluster, JobResources, memory_bytes
from launch.submit.plan import job_script, recipe_job, run_directory
from mezzotint.common.errors import UserError
from models.autoregressive.prior import PriorConfig
from models.config import text_shape
from models.diffusion.control.network import ControlConfig
from models.diffusion.network import HasConditioners
from trainer.engine_config import (
    check_numerics,
    check_update,
    chosen_precision,
    deepspeed_config,
    prepare,
    resolve_precision,
)
from trainer.memory_estimate import (
    FLOAT,
    MemoryEstimate,
    Sizes,
    checkpoint_bytes,
    estimate_memory,
    sizes,
    start_bytes,
    states,
)
from trainer.recipe import Precision, Recipe, dump
from trainer.run import RunDirectory


@dataclass(frozen=True)
class Machines:
    """The machines that the recipe would run on."""

    nodes: int
    processes: int
    processes_per_node: int
    device: str
    """`gpu` or `cpu`."""
    precision: Precision
    memory: int | None
    """Bytes per process (of its GPU, or its share of the node's memory); None: not known."""


@dataclass(frozen=True)
class Memory:
    """Memory of one process in bytes, without activations."""

    parts: Mapping[str, MemoryEstimate]
    base: int
    """Of the frozen base of a control, whole in every process; 0 without one."""
    total: int
    """Of all parts and the base, an upper bound."""
    start: int
    """Its peak at the start, before its engines: whole networks in fp32, or what
    is kept of the model (shards under ZeRO-3), whose parameters are filled one by one."""
    largest_layer: int
    """Numbers of the largest layer, which ZeRO-3 gathers whole."""
    available: int | None
    fits: bool | None
    """Whether total and start are within what is available; None: not known."""


@dataclass(frozen=True)
class DryRunReport:
    """A dry run: `parameters` by part and submodule, exact, counted on the meta device."""

    recipe: Mapping[str, Any]
    resolved: str
    parameters: Mapping[str, Mapping[str, int]]
    total: int
    components: Mapping[str, Mapping[str, int]]
    """Parameters of a denoiser, by part: of itself, and of the text encoder and class embedding
    that are trained with it, which published sizes do not count."""
    block_matrices: Mapping[str, int]
    """Weights in the matrices of a transformer's blocks, by part (12 width^2 a layer)."""
    steps: int
    per_step: Mapping[str, int]
    machines: Machines
    memory: Memory
    checkpoint_bytes: int
    deepspeed: Mapping[str, Any]
    """DeepSpeed's config by part."""
    job_script: str | None
    """The script that `mezzotint submit` would submit; None without a cluster."""
    notes: tuple[str, ...]
    """Why `mezzotint submit` would refuse it."""
    writes: tuple[str, ...]
    captions: CaptionLengths
    """Captions that are cut."""
    buckets: BucketCounts
    """Aspect-ratio buckets."""

    def to_json(self) -> str:
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
    """Resolve a recipe, count its parameters and plan its job; nothing is started or written.

    For a training job of a cluster (on `nodes` nodes; default: the cluster file's), or for
    `processes` processes on this machine.

    Raises:
        UserError: the batch cannot be split over the processes, or options that exclude each other.
    """
    machines, resources = _machines(recipe, processes, cluster, nodes)
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
    if cluster is not None and resources is not None:
        script, notes = _job(recipe, runs, cluster, resources)
    return DryRunReport(
        recipe=recipe.model_dump(mode="json"),
        resolved=dump(recipe),
        parameters=_parameters(parts),
        total=sum(_count(part) for part in parts.values()),
        components=_components(parts),
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
        captions=caption_lengths(recipe),
        buckets=bucket_counts(recipe),
        writes=tuple(
            str(path)
            for path in (run.recipe, run.metrics, run.checkpoints, run.previews, run.model)
        ),
    )


def _machines(
    recipe: Recipe, processes: int | None, cluster: Cluster | None, nodes: int | None
) -> tuple[Machines, JobResources | None]:
    """The machines; on a cluster with GPUs, precision `auto` means bf16."""
    wanted = recipe.engine.precision
    if cluster is None:
        if nodes is not None:
            raise UserError("--nodes: needs --cluster")
        count = processes or 1
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = resolve_precision(wanted, device)
        kind = "gpu" if device.type == "cuda" else "cpu"
        return Machines(1, count, count, kind, precision, None), None
    if processes is not None:
        raise UserError("--processes: the cluster file sets them; use --nodes")
    resources = cluster.training_resources(nodes)
    if resources.gpus_per_node:
        precision = chosen_precision(wanted, gpu=True, bf16=True)
        memory = cluster.gpu_memory and memory_bytes(cluster.gpu_memory)
    else:
        precision = resolve_precision(wanted, torch.device("cpu"))
        memory = cluster.memory and memory_bytes(cluster.memory) // resources.tasks_per_node
    device_kind = "gpu" if resources.gpus_per_node else "cpu"
    return Machines(
        resources.nodes,
        resources.tasks,
        resources.tasks_per_node,
        device_kind,
        precision,
        memory or None,
    ), resources


def _parameters(parts: Mapping[str, nn.Module]) -> dict[str, dict[str, int]]:
    """Parameters by part and submodule, frozen ones included; empty submodules are left out."""
    counted = {
        part: {name: _count(child) for name, child in module.named_children()}
        | {name: weight.numel() for name, weight in module.named_parameters(recurse=False)}
        for part, module in parts.items()
    }
    return {part: {name: n for name, n in each.items() if n} for part, each in counted.items()}


def _components(parts: Mapping[str, nn.Module]) -> dict[str, dict[str, int]]:
    """Denoiser and conditioners, for parts that are denoisers."""
    found = {}
    for name, part in parts.items():
        if isinstance(part, HasConditioners):
            beside = {key: _count(network) for key, network in part.conditioners.items()}
            found[name] = {"denoiser": _count(part) - sum(beside.values()), **beside}
    return found


def _count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _block_matrices(parts: Mapping[str, nn.Module]) -> dict[str, int]:
    """Weights in the matrices of a transformer's blocks, for parts that are transformers."""
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
    layouts = {name: states(recipe, name, machines.precision) for name in numbers}
    world = machines.processes
    parts = {name: estimate_memory(part, layouts[name], world) for name, part in numbers.items()}
    # a control starts as its base, which is read in fp32 then and takes the control's type later
    weights = _base_weights(recipe)
    base = weights * max((layout.number for layout in layouts.values()), default=FLOAT)
    total = sum(part.total for part in parts.values()) + base
    start = sum(start_bytes(part, layouts[name], world) for name, part in numbers.items())
    start += weights * FLOAT
    available = machines.memory
    return Memory(
        parts=parts,
        base=base,
        total=total,
        start=start,
        largest_layer=max(part.largest_layer for part in numbers.values()),
        available=available,
        fits=None if available is None else max(total, start) <= available,
    )


def _base_weights(recipe: Recipe) -> int:
    """Weights of the frozen network that a control is trained for; 0 without one."""
    if not isinstance(recipe.model, ControlConfig):
        return 0
    with torch.device("meta"):
        return _count(recipe.model.base.build())


def _job(
    recipe: Recipe, runs: Path, cluster: Cluster, resources: JobResources
) -> tuple[str, tuple[str, ...]]:
    """The job script, and why submit would refuse it."""
    notes: tuple[str, ...] = ()
    try:
        root = run_directory(runs, recipe.name, cluster)
    except UserError as error:
        root, notes = (runs / recipe.name).absolute(), (str(error),)
    return job_script(recipe_job(recipe, root, resources), cluster).text, notes
