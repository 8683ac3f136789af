"""`mezzotint inspect-mask`: what the layers of a prior read, as pictures, numbers and a proof."""

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
"""Pixels of a picture's side; smaller masks are enlarged by a whole factor."""
BATCH = 8
"""Places proved by one backward pass."""


@dataclass(frozen=True)
class MaskCheck:
    """Gradients of every output with respect to every input of a layer's attention."""

    causal: bool
    """No output depends on a later input: those gradients are exactly 0."""
    exact: bool
    """An output depends on exactly the inputs that the mask says."""


@dataclass(frozen=True)
class MaskReport:
    """One mask of a recipe. Scores count over the sequence as it is read in training."""

    name: str
    layers: tuple[int, ...]
    """Counted from 1."""
    image_scores: int
    """Unmasked scores between the places of a whole grid."""
    scores: int
    causal_scores: int
    """What a dense causal layer computes."""
    flop: int
    """Of the two products per sample and layer, forward: 4 x scores x heads x head width."""
    cache_entries: int
    """Keys (and as many values) per head that sampling keeps."""
    dense_cache_entries: int
    proof: MaskCheck
    picture: str | None

    @property
    def density(self) -> float:
        """Share of a dense causal layer's scores."""
        return self.scores / self.causal_scores


@dataclass(frozen=True)
class MaskInspection:
    """All masks of a recipe."""

    recipe: str
    flavor: str
    text_places: int
    image_places: int
    masks: tuple[MaskReport, ...]

    @property
    def attention_flop_saved(self) -> float:
        """Share of the attention's products that the masks leave out, over all layers."""
        total = sum(len(mask.layers) * mask.causal_scores for mask in self.masks)
        return 1 - sum(len(mask.layers) * mask.scores for mask in self.masks) / total

    @property
    def cache_saved(self) -> float:
        """Share of the cache entries that sampling does not keep, over all layers."""
        total = sum(len(mask.layers) * mask.dense_cache_entries for mask in self.masks)
        return 1 - sum(len(mask.layers) * mask.cache_entries for mask in self.masks) / total

    def to_json(self) -> str:
        """One JSON object."""
        tree = asdict(self)
        for entry, mask in zip(tree["masks"], self.masks, strict=True):
            entry["density"] = mask.density
        saved = {
            "attention_flop_saved": self.attention_flop_saved,
            "cache_saved": self.cache_saved,
        }
        return json.dumps(tree | saved, indent=1)

    def to_text(self) -> str:
        """For people."""
        lines = [
            f"{self.recipe}: masks {self.flavor}, {self.text_places} + {self.image_places} places"
        ]
        for mask in self.masks:
            proof = "proved by gradients" if mask.proof.causal and mask.proof.exact else "FAILED"
            lines += [
                f"{mask.name}: {len(mask.layers)} layers ({format_ranges(mask.layers)})",
                f"  scores: {mask.image_scores:,} in the image, {mask.scores:,} in all, "
                f"{mask.density:.1%} of a dense causal layer",
                f"  attention: {mask.flop / 1e6:,.1f} MFLOP a sample, forward",
                f"  cache: {mask.cache_entries:,} of {mask.dense_cache_entries:,} entries",
                f"  reads no later place and exactly its mask: {proof}",
            ]
            if mask.picture is not None:
                lines.append(f"  {mask.picture}")
        lines.append(
            f"over all layers: {self.attention_flop_saved:.1%} of the attention's products and "
            f"{self.cache_saved:.1%} of the cache are saved"
        )
        return "\n".join(lines)


def inspect_masks(recipe: Recipe, out: Path | None) -> MaskInspection:
    """Inspect every mask of a recipe's prior; pictures go to the directory `out`.

    Raises:
        UserError: the recipe trains another kind of model.
    """
    config = recipe.model
    if not isinstance(config, PriorConfig):
        raise UserError(
            f"model.kind: {config.kind} has no masks to look at; give a recipe of a prior"
        )
    patterns = config.patterns
    reports = []
    for pattern in dict.fromkeys(patterns):
        layers = tuple(place + 1 for place, each in enumerate(patterns) if each == pattern)
        reports.append(inspect_mask(config, pattern, layers, out))
    return MaskInspection(
        recipe=recipe.name,
        flavor=config.mask_flavor,
        text_places=config.prefix_length,
        image_places=config.image_length - 1,
        masks=tuple(reports),
    )


def inspect_mask(
    config: PriorConfig, pattern: Pattern | None, layers: tuple[int, ...], out: Path | None
) -> MaskReport:
    """Numbers, proof and picture of one mask."""
    prefix, places = config.prefix_length, config.image_length
    length = prefix + places - 1
    mask = joint_mask(pattern, prefix, length)
    whole = joint_mask(pattern, prefix, prefix + places)
    name = "dense" if pattern is None else pattern.name
    picture = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        picture = str(out / f"{name}.png")
        render_mask(mask, prefix).save(picture)
    scores = int(mask.sum())
    kept = places if pattern is None else pattern.cache_size(places)
    return MaskReport(
        name=name,
        layers=layers,
        image_scores=int(whole[prefix:, prefix:].sum()),
        scores=scores,
        causal_scores=length * (length + 1) // 2,
        flop=4 * scores * config.heads * config.head_width,
        cache_entries=prefix + min(kept, places - 1),
        dense_cache_entries=prefix + places - 1,
        proof=check_mask_by_gradient(attention_of(config, pattern), mask),
        picture=picture,
    )


def attention_of(config: PriorConfig, pattern: Pattern | None) -> Attend:
    """How layers with this pattern attend here."""
    reach = sparse_attention_of(config, pattern)
    if reach is None:
        return lambda query, key, value: attention(query, key, value, causal=True)
    return reach.attend


def check_mask_by_gradient(way: Attend, mask: Tensor) -> MaskCheck:
    """Compare the Jacobian of an attention with its mask, place by place.

    Query, key and value are all the input, so that no path escapes. Each sample of a batch stands
    for one place: samples do not mix.
    """
    length = len(mask)
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(1, 1, length, 4, generator=rng)
    causal = exact = True
    for first in range(0, length, BATCH):
        places = torch.arange(first, min(first + BATCH, length))
        x = states.repeat(len(places), 1, 1, 1).requires_grad_()
        chosen = way(x, x, x)[torch.arange(len(places)), 0, places]
        (gradient,) = torch.autograd.grad(chosen.sum(), x)
        reached = gradient[:, 0].abs().amax(dim=-1) != 0
        later = torch.arange(length) > places[:, None]
        causal &= not bool((reached & later).any())
        exact &= torch.equal(reached, mask[places])
    return MaskCheck(causal=causal, exact=exact)


def render_mask(mask: Tensor, prefix: int) -> Image.Image:
    """A row per query: text on text, image on caption, image on image, and the future shaded."""
    length = len(mask)
    places = torch.arange(length)
    query, key = places[:, None], places
    picture = torch.tensor(BACKGROUND, dtype=torch.uint8).expand(length, length, 3).clone()
    picture[key > query] = torch.tensor(FUTURE, dtype=torch.uint8)
    for name, part in (
        ("text", query < prefix),
        ("caption", (query >= prefix) & (key < prefix)),
        ("image", (query >= prefix) & (key >= prefix)),
    ):
        picture[mask & part] = torch.tensor(COLORS[name], dtype=torch.uint8)
    factor = max(1, -(-MIN_SIDE // length))
    return Image.fromarray(picture.numpy()).resize(
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
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(words if len(words) <= 6 else [*words[:4], "…", words[-1]])
