"""`mezzotint sample`: the images of a request, as one labelled grid."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from launch.processes import run_in_processes
from launch.progress import Reporter
from launch.sampling.inputs import images_of_set
from launch.sampling.lost_captions import Lost, find_lost
from launch.sampling.plan import SampleOptions, SamplePlan, plan_sampling
from launch.sampling.sample_report import SampleReport, sample_grid
from launch.sampling.trajectory import Trajectory
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.config import DenoiserSystem
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.generator import GenerationResult, Prompt
from mezzotint.inference.load import load_generator, with_config
from mezzotint.inference.preprocessing import image_config
from mezzotint.inference.process_group import ProcessGroup
from models.diffusion.solvers.analytic_dpm import AnalyticDPM

TRAJECTORY_IMAGES = 4
"""Images of a trajectory at most."""
MOMENT_IMAGES = 128
"""Images that the moments of Analytic-DPM are estimated on."""


def sample(where: str, out: Path, options: SampleOptions) -> SampleReport | None:
    """Generate, and write one PNG and perhaps a trajectory; None on ranks that do not write.

    Raises:
        UserError: no such run, system, model, class or setting, options that do not go together,
            or models that cannot be read or are not conditioned on what a prompt has.
    """
    plan = plan_sampling(where, options)
    request = plan.request
    images = len(request.prompts) * request.number
    cells = run_in_processes(
        partial(generate_cells, plan),
        device=options.device,
        processes=options.processes,
        blocks=-(-images // request.batch_size),
        images=images * len(plan.configs),
    )
    if cells is None:
        return None
    results, trajectory, lost = cells
    report = SampleReport(out, plan, results, lost)
    out.parent.mkdir(parents=True, exist_ok=True)
    sample_grid(report).save(out)
    if trajectory is not None and options.trajectory is not None:
        config = plan.configs[0]
        assert isinstance(config, DenoiserSystem)
        solver = f"{config.sampling.steps} steps of {config.sampling.solver.kind}"
        title = f"{plan.name}, seed {options.seed}, {solver}"
        trajectory.save(options.trajectory, plan.titles, title)
    return report


def generate_cells(
    plan: SamplePlan, device: torch.device, group: ProcessGroup
) -> tuple[Sequence[GenerationResult], Trajectory | None, Lost] | None:
    """The results of all cells, the trajectory of the only one, and what captions lose.

    None on ranks but the main.
    """
    options = plan.options
    generator = load_generator(
        plan.configs[0], device=device, precision=options.precision, group=group
    )
    count = min(len(plan.titles), plan.request.batch_size, TRAJECTORY_IMAGES)
    trajectory = None if options.trajectory is None else Trajectory(count)
    results = []
    with Reporter(None, shows=group.is_main and options.show_progress) as reporter:
        for settings, config in zip(plan.settings, plan.configs, strict=True):
            words = " ".join(f"{key}={value}" for key, value in settings.items())
            chosen = with_config(generator, config)
            if isinstance(chosen, DiffusionGenerator):
                chosen = with_moments(chosen, options)
            progress = reporter.callback(f"generate {words}".strip())
            results.append(chosen.generate(plan.request, progress=progress, callback=trajectory))
    negatives = [each.negative for each in plan.configs if isinstance(each, DenoiserSystem)]
    captions = [prompt.text for prompt in plan.request.prompts]
    lost = find_lost(generator, [*captions, *negatives])
    return (results, trajectory, lost) if group.is_main else None


def with_moments(generator: DiffusionGenerator, options: SampleOptions) -> DiffusionGenerator:
    """The generator, with estimated moments if its solver is Analytic-DPM and has none."""
    solver = generator.config.sampling.solver
    if not isinstance(solver, AnalyticDPM) or solver.moments is not None:
        return generator
    if options.data is None:
        raise UserError(
            "--solver analytic_dpm: its variances are estimated on images; give --data SET"
        )
    image = image_config(generator.config.model, generator.image_size, options.preprocessing)
    found = images_of_set(options.data, image, limit=MOMENT_IMAGES, seed=options.seed, split=None)
    captions = found.captions if generator.text is not None else [None] * len(found.images)
    rng = keyed_generator(options.seed, "moments")
    return generator.with_analytic_moments(found.images, [Prompt(each) for each in captions], rng)
