"""Inpainting by a model trained for it, and by known-region replacement.

    .venv/bin/python docs/make_inpainting.py TRAINED BASE data/emoji

Repaints random rectangles of held-out images by both models, of the same noise, and compares the
repainted pixels with the real ones: their PSNR, and the difference of neighbours across the
rectangles' borders as a multiple of that of the real images. TRAINED is a run of
recipes/emoji_latent_inpainting.yaml and BASE the one that it went on from. Writes
docs/images/latent-inpainting.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import mezzotint
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from evaluation.metrics.intervals import bootstrap_mean
from models.diffusion.inpainting import random_masks

SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two ways of inpainting.")
    parser.add_argument("trained", help="a run that was trained to inpaint")
    parser.add_argument("base", help="the run that it went on from")
    parser.add_argument("set", help="a set with the split composition")
    parser.add_argument("--number", type=int, default=120, help="images")
    parser.add_argument("--empty-captions", action="store_true", help="by the kept pixels alone")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    systems = [mezzotint.load(each, device=given.device) for each in (given.trained, given.base)]
    side = systems[0].image_size
    dataset = mezzotint.open_dataset(given.set, image_size=side, split="composition", part="test")
    rows = range(0, len(dataset), max(1, len(dataset) // given.number))[: given.number]
    images = torch.stack([torch.from_numpy(dataset.sample(row).image.copy()) for row in rows])
    captions = [dataset.caption(row) for row in rows]
    rng, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    masks = random_masks(len(images), side, 0.0, rng, cpu)
    asked = [""] * len(captions) if given.empty_captions else captions
    repainted = [inpaint(system, images, asked, masks[:, 0] > 0) for system in systems]
    for name, found in zip(("trained", "replacement"), repainted, strict=True):
        print(name, *(f"{what} {value}" for what, value in scores(found, images, masks[:, 0] > 0)))
    if given.empty_captions:
        return
    masked = torch.where(masks[:, 0, ..., None] > 0, 160, images)
    columns = torch.stack([images, masked, *repainted], dim=1)[:SHOWN]
    cells = [GridCell(row[None], text) for text, row in zip(captions, columns, strict=False)]
    labels = ("image", "kept", "trained", "replacement")
    grid = image_grid(in_columns(cells, 2), image_labels=labels)
    grid.save(Path(__file__).parent / "images" / "latent-inpainting.png")


def inpaint(
    system: mezzotint.System, images: Tensor, captions: Sequence[str], masks: Tensor
) -> Tensor:
    """Each image repainted where its mask is true."""
    made = [
        system.generate([caption], seed=index, image=image, mask=mask).images[0, 0]
        for index, (image, caption, mask) in enumerate(zip(images, captions, masks, strict=True))
    ]
    return torch.stack(made)


def scores(found: Tensor, real: Tensor, masks: Tensor) -> list[tuple[str, str]]:
    """PSNR of the repainted pixels, and the borders' differences beside the real ones."""
    rng = torch.Generator().manual_seed(0)
    error = (found.double() - real.double()).square().mean(dim=-1)
    mse = (error * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2))
    psnr = bootstrap_mean(10 * torch.log10(255**2 / mse.clamp(min=1e-3)), rng)
    seam = border(found, masks).sum() / border(real, masks).sum()
    kept = (found - real).abs().amax(dim=-1)[~masks].max()
    return [
        ("PSNR", f"{psnr.value:.1f} dB [{psnr.low:.1f}, {psnr.high:.1f}]"),
        ("borders", f"{seam:.2f}"),
        ("largest change of a kept value", str(int(kept))),
    ]


def border(images: Tensor, masks: Tensor) -> Tensor:
    """The mean difference of neighbours of which one is repainted, of each image (n,)."""
    total = torch.zeros(len(images), dtype=torch.float64)
    count = torch.zeros_like(total)
    for axis in (1, 2):
        length = images.shape[axis] - 1
        a, b = (images.narrow(axis, start, length).double() for start in (0, 1))
        across = masks.narrow(axis, 0, length) ^ masks.narrow(axis, 1, length)
        total += ((a - b).abs().mean(dim=-1) * across).sum(dim=(1, 2))
        count += across.sum(dim=(1, 2))
    return total / count.clamp(min=1)


if __name__ == "__main__":
    main()
