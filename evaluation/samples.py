"""Sample sets: the prompts of an evaluation, the images generated for them, and both on disk."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mezzotint.common import files
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_seed
from mezzotint.inference.generator import GenerationRequest, ImageGenerator, Prompt
from mezzotint.inference.images import to_pil

INDEX = "samples.jsonl"


@dataclass(frozen=True)
class EvaluationPrompt:
    """A caption (of sample `key`, in a part of the reference set) and how often it came before."""

    part: str
    key: str
    caption: str
    repeat: int


@dataclass(frozen=True)
class SampleSet:
    """R prompts with N candidates each: images (R, N, H, W, 3) uint8, ranking scores (R, N)."""

    prompts: tuple[EvaluationPrompt, ...]
    candidates: Tensor
    scores: Tensor | None

    @property
    def chosen(self) -> Tensor:
        """One image per prompt (R, H, W, 3): its best-ranked candidate, the first if unranked."""
        if self.scores is None:
            return self.candidates[:, 0]
        rows = torch.arange(len(self.prompts), device=self.candidates.device)
        return self.candidates[rows, self.scores.argmax(dim=1)]

    @property
    def captions(self) -> list[str]:
        return [prompt.caption for prompt in self.prompts]

    @property
    def parts(self) -> list[str]:
        """The parts of the reference set that prompts are from."""
        return list(dict.fromkeys(prompt.part for prompt in self.prompts))

    def indices(self, part: str) -> list[int]:
        return [index for index, prompt in enumerate(self.prompts) if prompt.part == part]


def choose(keys: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Indices of `limit` keys in an order fixed by (seed, key): a larger limit only adds some."""
    return sorted(range(len(keys)), key=lambda index: keyed_seed(seed, keys[index]))[:limit]


def generate(
    generator: ImageGenerator,
    prompts: Sequence[EvaluationPrompt],
    *,
    seed: int,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSet:
    """All candidates of every prompt, those of `batch` prompts at a time.

    The images of a prompt do not depend on the other prompts.
    """
    if not prompts:
        raise UserError("limit: no caption is selected; raise limit.test or limit.train")
    count = generator.candidates
    request = GenerationRequest(
        prompts=tuple(Prompt(each.caption, key=f"{each.key}/{each.repeat}") for each in prompts),
        number=count,
        seed=seed,
        batch_size=batch * count,
    )
    result = generator.generate(request, progress=progress)
    return SampleSet(tuple(prompts), candidates=result.images, scores=result.scores)


def write(
    samples: SampleSet,
    directory: Path,
    real: Mapping[str, Tensor],
    nearest: Sequence[str] | None = None,
) -> None:
    """Write the chosen images, all candidates side by side, and the `real` images by key, as PNG.

    `nearest` is the caption of the real image nearest to each chosen one, where it is known.
    Files are numbered; a key, which is data, only ever appears inside the index `samples.jsonl`.
    """
    for folder in ("samples", "real", "candidates"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (prompt, image) in enumerate(zip(samples.prompts, samples.chosen, strict=True)):
        name = f"{index:06d}.png"
        to_pil(image).save(directory / "samples" / name)
        to_pil(real[prompt.key]).save(directory / "real" / name)
        line: dict[str, object] = {
            **vars(prompt),
            "sample": f"samples/{name}",
            "real": f"real/{name}",
        }
        candidates = samples.candidates[index]
        if len(candidates) > 1:
            to_pil(torch.cat(list(candidates), dim=1)).save(directory / "candidates" / name)
            line["candidates"] = f"candidates/{name}"
        if nearest is not None:
            line["nearest"] = nearest[index]
        if samples.scores is not None:
            line["scores"] = [round(score, 6) for score in samples.scores[index].tolist()]
        lines.append(json.dumps(line, ensure_ascii=False))
    files.write_text(directory / INDEX, "".join(f"{line}\n" for line in lines))
