"""A dry run as text."""

import json
from dataclasses import asdict

from launch.dry_run.report import DryRunReport

LABELS = {
    "weights": "weights",
    "master": "fp32 master weights",
    "moments": "optimizer moments",
    "averages": "EMA",
    "gradients": "gradients",
    "buckets": "reduction buckets",
    "gathered": "gathered parameters",
    "update": "copies in an update",
}


def format_bytes(count: int) -> str:
    """A number of bytes with a unit."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:,.1f} {units[0]}" if units[0] != "B" else f"{count} B"


def to_text(report: DryRunReport) -> str:
    """The report of `mezzotint check`."""
    lines = [report.resolved.rstrip(), "", "parameters (exact, trainable):"]
    for part, modules in report.parameters.items():
        lines += [f"  {part}.{name}: {count:,}" for name, count in modules.items()]
        if len(report.components.get(part, {})) > 1:
            each = ", ".join(f"{name} {n:,}" for name, n in report.components[part].items())
            lines.append(f"  (of {part}: {each})")
        if part in report.block_matrices:
            matrices = report.block_matrices[part]
            lines.append(f"  (in the weight matrices of {part}'s blocks: {matrices:,})")
    lines += [f"  total: {report.total:,}", "", f"steps: {report.steps:,}"]
    lines += [f"per step: {count:,} {unit}" for unit, count in report.per_step.items()]
    lines += report.captions.to_text()
    lines += report.buckets.to_text()
    machines = report.machines
    lines += [
        "",
        f"machines: {machines.processes} processes on {machines.nodes} nodes, "
        f"one per {machines.device.upper()}, computing in {machines.precision}",
        "",
        *memory_lines(report),
    ]
    lines += ["", f"checkpoint: {format_bytes(report.checkpoint_bytes)} on disk"]
    for part, settings in report.deepspeed.items():
        lines += ["", f"deepspeed, {part}:", json.dumps(settings, indent=1)]
    lines += ["", "would write:", *(f"  {path}" for path in report.writes)]
    if report.job_script is not None:
        lines += ["", "would submit:", report.job_script.rstrip()]
    if report.notes:
        lines += ["", "submit would refuse:", *(f"  {note}" for note in report.notes)]
    return "\n".join(lines)


def memory_lines(report: DryRunReport) -> list[str]:
    """The memory of each process."""
    memory = report.memory
    lines = ["memory of each process, without activations:"]
    stages = {
        part: settings["zero_optimization"]["stage"] for part, settings in report.deepspeed.items()
    }
    if memory.base:
        lines.append(f"  frozen base: {format_bytes(memory.base)}")
    for part, held in memory.parts.items():
        lines.append(f"  {part} at ZeRO {stages[part]}:")
        lines += [f"    {LABELS[name]} {format_bytes(n)}" for name, n in asdict(held).items() if n]
    if 3 in stages.values():
        lines.append(f"  (largest layer, gathered whole: {memory.largest_layer:,} weights)")
    lines.append(
        f"  at most {format_bytes(memory.total)}; while it starts {format_bytes(memory.start)},"
    )
    node = memory.start * report.machines.processes_per_node
    lines.append(f"  built in the node's own memory first ({format_bytes(node)} per node)")
    if memory.available is not None:
        verdict = "fits into" if memory.fits else "DOES NOT FIT into"
        lines.append(
            f"  {verdict} {format_bytes(memory.available)} per {report.machines.device.upper()}"
        )
    return lines
