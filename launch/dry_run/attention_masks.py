"""`mezzotint inspect-mask`: the attention masks of a prior as images, counts and a check."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mezzotint.common.errors import UserError
from models.autoregressive.patterns import Pattern, joint_mask
from models.autoregressive.prior import PriorConfig, sparse_attention_of
from models.nn.cpu.dispatch import attention
from trainer.recipe import Recipe

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
COLORS = {"text": (72, 98, 140), "caption": (150, 178, 214), "image": (38, 38, 38)}
BACKGROUND, FUTURE = (250, 249, 246), (236, 233, 226)
MIN_SIDE = 640
"""Pixels of an image's side; smaller masks are enlarged by a whole factor."""
BATCH = 8
"""Positions checked by one backward pass."""


@dataclass(frozen=True)
class MaskCheck:
    """The gradients of every output with respect to every input of a layer's attention."""

    causal: bool
    """No output depends on a later input: those gradients are exactly 0."""
    exact: bool
    """Every output depends on exactly the inputs of its row of the mask."""


@dataclass(frozen=True)
class MaskReport:
    """One mask of a recipe. Scores are counted over the training sequence."""

    name: str
    layers: tuple[int, ...]
    """Counted from 1."""
    image_scores: int
    """Unmasked scores between the positions of a whole grid."""
    scores: int
    causal_scores: int
    """Scores of a dense causal layer."""
    flop: int
    """Of the two matrix products per sample and layer, forward: 4 x scores x heads x head width."""
    cache_entries: int
    """Keys (and as many values) per head in the KV cache."""
    dense_cache_entries: int
    check: MaskCheck
    image: str | None

    @property
    def density(self) -> float:
        """Fraction of a dense causal layer's scores."""
        return self.scores / self.causal_scores


@dataclass(frozen=True)
class MaskInspection:
    """All masks of a recipe."""

    recipe: str
    flavor: str
    text_positions: int
    image_positions: int
    masks: tuple[MaskReport, ...]

    @property
    def attention_flop_saved(self) -> float:
        """Fraction of the attention FLOP that the masks save, over all layers."""
        total = sum(len(mask.layers) * mask.causal_scores for mask in self.masks)
        return 1 - sum(len(mask.layers) * mask.scores for mask in self.masks) / total

    @property
    def cache_saved(self) -> float:
        """Fraction of the KV cache that the masks save, over all layers."""
        total = sum(len(mask.layers) * mask.dense_cache_entries for mask in self.masks)
        return 1 - sum(len(mask.layers) * mask.cache_entries for mask in self.masks) / total

    def to_json(self) -> str:
        tree = asdict(self)
        for entry, mask in zip(tree["masks"], self.masks, strict=True):
            entry["density"] = mask.density
        saved = {
            "attention_flop_saved": self.attention_flop_saved,
            "cache_saved": self.cache_saved,
        }
        return json.dumps(tree | saved, indent=1)

    def to_text(self) -> str:
        positions = f"{self.text_positions} + {self.image_positions} positions"
        lines = [f"{self.recipe}: masks {self.flavor}, {positions}"]
        for mask in self.masks:
            passed = mask.check.causal and mask.check.exact
            check = "passed" if passed else "FAILED"
            lines += [
                f"{mask.name}: {len(mask.layers)} layers ({format_ranges(mask.layers)})",
                f"  scores: {mask.image_scores:,} in the image, {mask.scores:,} in total, "
                f"{mask.density:.1%} of a dense causal layer",
                f"  attention: {mask.flop / 1e6:,.1f} MFLOP per sample, forward",
                f"  cache: {mask.cache_entries:,} of {mask.dense_cache_entries:,} entries",
                f"  causal, and exactly its mask, by gradients: {check}",
            ]
            if mask.image is not None:
                lines.append(f"  {mask.image}")
        lines.append(
            f"over all layers: {self.attention_flop_saved:.1%} of the attention FLOP and "
            f"{self.cache_saved:.1%} of the KV cache are saved"
        )
        return "\n".join(lines)


def inspect_masks(recipe: Recipe, out: Path | None) -> MaskInspection:
    """Inspect every mask of a recipe's prior; images are written to the directory `out`.

    Raises:
        UserError: the recipe trains another kind of model.
    """
    config = recipe.model
    if not isinstance(config, PriorConfig):
        raise UserError(
            f"model.kind: {config.kind} has no attention masks; use a recipe of a prior"
        )
    patterns = config.patterns
    reports = []
    for pattern in dict.fromkeys(patterns):
        layers = tuple(index + 1 for index, each in enumerate(patterns) if each == pattern)
        reports.append(inspect_mask(config, pattern, layers, out))
    return MaskInspection(
        recipe=recipe.name,
        flavor=config.mask_flavor,
        text_positions=config.prefix_length,
        image_positions=config.image_length - 1,
        masks=tuple(reports),
    )


def inspect_mask(
    config: PriorConfig, pattern: Pattern | None, layers: tuple[int, ...], out: Path | None
) -> MaskReport:
    """Counts, check and image of one mask."""
    prefix, positions = config.prefix_length, config.image_length
    length = prefix + positions - 1
    mask = joint_mask(pattern, prefix, length)
    whole = joint_mask(pattern, prefix, prefix + positions)
    name = "dense" if pattern is None else pattern.name
    image = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        image = str(out / f"{name}.png")
        render_mask(mask, prefix).save(image)
    scores = int(mask.sum())
    kept = positions if pattern is None else pattern.cache_size(positions)
    return MaskReport(
        name=name,
        layers=layers,
        image_scores=int(whole[prefix:, prefix:].sum()),
        scores=scores,
        causal_scores=length * (length + 1) // 2,
        flop=4 * scores * config.heads * config.head_width,
        cache_entries=prefix + min(kept, positions - 1),
        dense_cache_entries=prefix + positions - 1,
        check=check_mask_by_gradient(attention_of(config, pattern), mask),
        image=image,
    )


def attention_of(config: PriorConfig, pattern: Pattern | None) -> Attend:
    """The attention of layers with this pattern."""
    reach = sparse_attention_of(config, pattern)
    if reach is None:
        return lambda query, key, value: attention(query, key, value, causal=True)
    return reach.attend


def check_mask_by_gradient(attention: Attend, mask: Tensor) -> MaskCheck:
    """Compare the Jacobian of an attention with its mask, row by row.

    The input is query, key and value at once. Each sample of the batch checks one position:
    samples do not mix.
    """
    length = len(mask)
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(1, 1, length, 4, generator=rng)
    causal = exact = True
    for first in range(0, length, BATCH):
        positions = torch.arange(first, min(first + BATCH, length))
        x = states.repeat(len(positions), 1, 1, 1).requires_grad_()
        chosen = attention(x, x, x)[torch.arange(len(positions)), 0, positions]
        (gradient,) = torch.autograd.grad(chosen.sum(), x)
        reached = gradient[:, 0].abs().amax(dim=-1) != 0
        later = torch.arange(length) > positions[:, None]
        causal &= not bool((reached & later).any())
        exact &= torch.equal(reached, mask[positions])
    return MaskCheck(causal=causal, exact=exact)


def render_mask(mask: Tensor, prefix: int) -> Image.Image:
    """One row per query, colored by text on text, image on text and image on image."""
    length = len(mask)
    positions = torch.arange(length)
    query, key = positions[:, None], positions
    image = torch.tensor(BACKGROUND, dtype=torch.uint8).expand(length, length, 3).clone()
    image[key > query] = torch.tensor(FUTURE, dtype=torch.uint8)
    for name, part in (
        ("text", query < prefix),
        ("caption", (query >= prefix) & (key < prefix)),
        ("image", (query >= prefix) & (key >= prefix)),
    ):
        image[mask & part] = torch.tensor(COLORS[name], dtype=torch.uint8)
    factor = max(1, -(-MIN_SIDE // length))
    return Image.fromarray(image.numpy()).resize(
        (length * factor, length * factor), Image.Resampling.NEAREST
    )


def format_ranges(numbers: tuple[int, ...]) -> str:
    """1, 3-5, 7 …, at most six of them."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(parts if len(parts) <= 6 else [*parts[:4], "…", parts[-1]])
