import io
from pathlib import Path

import numpy as np
import pytest
from image_files import ADOBE_RGB, encoded, rgb_icc
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.images import ImageNote
from data_pipeline.inspect import SplitOverlap, inspect
from data_pipeline.inspection.image_statistics import bars, image_statistics
from data_pipeline.packing.shard_writer import RawSample, in_splits, write_shards
from data_pipeline.sets.contents import Split

RNG = np.random.default_rng(0)


def photo(width: int, height: int) -> Image.Image:
    small = RNG.integers(40, 216, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def padded(image: Image.Image, colour: str) -> Image.Image:
    """As a resizer does that fills the rest of a square."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def as_jpeg(image: Image.Image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(image, "JPEG", quality=90))))


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (96, 60), (256, 100)])
@pytest.mark.parametrize(
    ("colour", "name"), [("white", "white"), ("black", "black"), ("#7f3050", "one-colour")]
)
def test_bars_of_a_padded_image_are_found(size: tuple[int, int], colour: str, name: str):
    assert bars(np.asarray(padded(photo(*size), colour))) == name
    assert bars(as_jpeg(padded(photo(*size), colour))) == name


def test_narrow_bars_are_found_where_compression_does_not_blur_them():
    assert bars(np.asarray(padded(photo(96, 91), "white"))) == "white"


@pytest.mark.parametrize(
    "image",
    [
        photo(96, 64),
        photo(1, 40),
        Image.new("RGB", (50, 50), "white"),
        padded(padded(photo(40, 40), "white").crop((-20, -20, 60, 60)), "white"),
        padded(photo(96, 95), "white"),
    ],
)
def test_images_without_bars_have_none(image: Image.Image):
    assert bars(np.asarray(image)) is None


def test_an_object_on_a_plain_background_has_no_bars():
    canvas = Image.new("RGB", (90, 90), "white")
    canvas.paste(photo(50, 20), (20, 35))
    assert bars(np.asarray(canvas)) is None
    canvas.paste(photo(70, 20), (0, 35))  # as far as one side
    assert bars(np.asarray(canvas)) is None


def write(url: str, images: list[bytes], captions: list[str], split: Split | None = None) -> None:
    splits = {} if split is None else {"random": split}
    write_shards(
        in_splits(
            [
                RawSample(f"{number:02d}", {"png": image, "txt": caption.encode()})
                for number, (image, caption) in enumerate(zip(images, captions, strict=True))
            ],
            splits,
        ),
        url,
        name="x",
        licence="unknown",
        provenance={},
        shard_size=4,
        fields={},
        splits={name: one.description for name, one in splits.items()},
    )


def test_images_of_a_set_in_numbers(tmp_path: Path):
    clear = photo(40, 30)
    clear.putalpha(Image.new("L", clear.size, 0))  # put on white, which is no bar
    images = [
        encoded(photo(40, 30)),
        encoded(photo(1, 1)),
        encoded(photo(200, 4)),
        encoded(padded(photo(40, 20), "white")),
        encoded(photo(60, 50), icc_profile=rgb_icc(ADOBE_RGB, 2.2)),
        encoded(clear),
        encoded(photo(40, 30))[:80],
    ]
    url = str(tmp_path / "set")
    write(url, images, [f"caption {number}" for number in range(7)])
    found = image_statistics(open_dataset(DataConfig(url=url)), range(7))
    assert found is not None
    assert (found.read, found.smallest, found.largest) == (7, (1, 1), (60, 50))
    assert found.aspect_max == 50
    assert {what: one.examples for what, one in found.noticed.items()} == {
        "a side below 16 pixels": ("01", "02"),
        "more than 10 times as long as wide": ("02",),
        "white bars": ("03",),
        ImageNote.CONVERTED: ("04",),
        ImageNote.ON_WHITE: ("05",),
        "not readable": ("06",),
    }


def test_what_training_and_test_parts_share_is_counted(tmp_path: Path):
    one, other, third = (encoded(photo(20, 20)) for _ in range(3))
    url = str(tmp_path / "set")
    write(
        url,
        [one, other, one, third, other],
        ["A dog", "a cat\na kitten", "a hen", "a  DOG", "a cow"],
        Split(description="", train=("00", "01"), test=("02", "03", "04")),
    )
    found = inspect(url)
    assert found.equal_images == 2
    assert found.overlap == {"random": SplitOverlap(images=2, captions=1)}
    assert (found.captions.read, found.captions.samples, found.captions.several) == (6, 5, 1)
    assert inspect(url, images=0).images is None
