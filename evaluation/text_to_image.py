"""Evaluation of a system that generates images for captions."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_pipeline.config import ImageConfig
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from evaluation import reference, samples
from evaluation.config import TextToImageConfig, image_protocol
from evaluation.metrics import clip_score
from evaluation.metrics import text_to_image as metrics
from evaluation.metrics.text_to_image import ExactMatches
from evaluation.reference import Reference
from evaluation.result import Evaluated
from evaluation.samples import EvaluationPrompt, SampleSet
from evaluation.stages import Stages
from mezzotint.common.errors import UserError
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.generator import ImageGenerator, ranking
from mezzotint.inference.load import load_generator
from mezzotint.inference.preprocessing import image_model
from mezzotint.inference.runtime import Runtime


def evaluate_text_to_image(
    config: TextToImageConfig, runtime: Runtime, stages: Stages
) -> Evaluated:
    """Generate images with a system and evaluate them.

    Raises:
        UserError: something that is read is missing or does not fit.
    """
    system = load_generator(
        config.system, device=runtime.device, precision=config.precision, group=runtime.group
    )
    clip = ClipEmbedder.load(config.clip, runtime.device)
    fp32 = replace(runtime, bf16=False)
    with stages("reference") as report:
        image = config.reference.image_config(image_model(config.system), system.image_size)
        real = reference.load(config.reference, image, report)
    check_retrieval_choices(config.retrieval_choices, real)
    prompts = evaluation_prompts(config, real)
    cut = cut_prompts(system, clip, [prompt.caption for prompt in prompts])
    with stages("generate") as report:
        generated = samples.generate(
            system, prompts, seed=config.seed, batch=config.batch, progress=report
        )
    with stages("exact_match"):
        matches = metrics.match_exactly(generated, real, system.reconstruct, config.seed)
    with stages("clip"):
        clip_metrics = metrics.clip_metrics(
            generated, real, clip, fp32, choices=config.retrieval_choices, seed=config.seed
        )
    network = config.features.build(fp32)
    with stages("features") as report:
        distances = metrics.frechet_metrics(generated, real, network, config.seed, report)
    return Evaluated(
        protocol={
            **generation_protocol(config, system, generated, real, image),
            "exact_match": exact_match_rule(matches),
            "clip": clip.protocol(),
            "clip_score": clip_score.DEFINITION,
            "captions_cut": cut,
            "clip_retrieval": f"own caption above {config.retrieval_choices - 1} wrong captions",
            "features": network.protocol(),
            "intervals": "95% over captions; Wilson for proportions, bootstrap for means",
        },
        metrics={
            **metrics.exact_match_metrics(generated, matches),
            **clip_metrics,
            **distances,
            **metrics.best_of_n_metrics(generated, matches, real.held_out, config.seed),
        },
        write_images=partial(write_images, config, generated, real, matches),
    )


def cut_prompts(
    system: ImageGenerator, clip: ClipEmbedder, captions: Sequence[str]
) -> dict[str, object]:
    """What is not read of the distinct captions, by reader: the model, its ranker, the CLIP."""
    distinct = list(dict.fromkeys(captions))
    found: dict[str, dict[str, str]] = {}
    for role, reader in {**system.text_encoders, "clip": clip.text}.items():
        lost = {caption: reader.lost(caption) for caption in distinct}
        found[role] = {caption: end for caption, end in lost.items() if end}
    return {"captions": len(distinct), "lost": {role: each for role, each in found.items() if each}}


def check_retrieval_choices(choices: int, real: Reference) -> None:
    """Make sure that every image has `choices` - 1 captions that are wrong for it.

    Raises:
        UserError: the split has fewer.
    """
    most_right = max(len(captions) for captions in real.captions_of_identical_images())
    wrong = len(set(real.captions)) - most_right
    if wrong < choices - 1:
        raise UserError(
            f"retrieval_choices: {choices} captions are wanted, but split {real.held_out} has "
            f"{wrong} wrong ones for some images; set it to at most {wrong + 1}"
        )


def evaluation_prompts(config: TextToImageConfig, real: Reference) -> list[EvaluationPrompt]:
    """The chosen captions of both parts, each `samples_per_caption` times."""
    prompts = []
    limits = {real.held_out: config.limit.test, "train": config.limit.train}
    for part, limit in limits.items():
        indices = real.indices(part)
        for chosen in samples.choose([real.keys[index] for index in indices], limit, config.seed):
            index = indices[chosen]
            prompts += [
                EvaluationPrompt(part, real.keys[index], real.captions[index], repeat)
                for repeat in range(config.samples_per_caption)
            ]
    return prompts


def generation_protocol(
    config: TextToImageConfig,
    system: ImageGenerator,
    generated: SampleSet,
    real: Reference,
    image: ImageConfig,
) -> dict[str, object]:
    """How the samples were generated, and what they were compared with."""
    return {
        "images": {part: len(generated.indices(part)) for part in generated.parts},
        "samples_per_caption": config.samples_per_caption,
        "seed": config.seed,
        "batch": config.batch,
        "randomness": "one generator per image, keyed by (seed, caption, key, repeat, candidate)",
        "system": system.protocol(),
        "reference": {
            "split": real.held_out,
            "fingerprint": real.fingerprint,
            "images": len(real.keys),
            **image_protocol(image),
        },
    }


def exact_match_rule(matches: ExactMatches) -> str:
    """The rule of the exact match as text."""
    targets = "reconstructions of real images" if matches.against_reconstructions else "real images"
    return (
        f"nearest by squared difference of 8-bit pixels among the {matches.distinct_images} "
        f"distinct {targets} of the split, held-out and training; of pixel-identical ones any "
        "caption counts"
    )


def write_images(
    config: TextToImageConfig,
    generated: SampleSet,
    real: Reference,
    matches: ExactMatches,
    out: Path,
) -> None:
    """The sample set, `grid_PART.png` with sample beside real image, and `grid_candidates.png`."""
    real_images = dict(zip(real.keys, real.images, strict=True))
    samples.write(generated, out, real_images, matches.nearest)
    chosen = generated.chosen
    titles = {real.held_out: "never seen in training", "train": "training captions"}
    for part, title in titles.items():
        cells = [
            GridCell(
                [[chosen[index], real_images[generated.prompts[index].key]]],
                generated.prompts[index].caption,
                bool(matches.chosen[index]),
            )
            for index in generated.indices(part)[: config.grid_images]
        ]
        if cells:
            grid = image_grid(
                in_columns(cells, 4),
                title=f"{config.name}: {title}",
                image_labels=("sample", "real"),
            )
            grid.save(out / f"grid_{'train' if part == 'train' else 'held_out'}.png")
    indices = generated.indices(real.held_out)[:8]
    if generated.scores is None or generated.candidates.shape[1] == 1 or not indices:
        return
    order = ranking(generated.scores)
    candidates = [
        [GridCell(generated.candidates[index][order[index]][None], generated.captions[index])]
        for index in indices
    ]
    title = f"{config.name}: candidates, ranked by CLIP from left to right"
    image_grid(candidates, title=title, image_labels=("best",)).save(out / "grid_candidates.png")
