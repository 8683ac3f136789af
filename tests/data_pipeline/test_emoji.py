"""The embedded set itself: what its README and the recipes promise."""

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.verify import verify

EMOJI = Path(__file__).resolve().parents[2] / "data" / "emoji"
TONES = ("none", "light", "medium-light", "medium", "medium-dark", "dark")
WORD = re.compile(r"[^\W_]+(?:[-’'][^\W_]+)*")


def part(split: str, name: str, **where: tuple[str, ...]) -> Dataset:
    selection = Selection(split=split, part=name, where=where)
    return open_dataset(DataConfig(url=str(EMOJI), select=(selection,)))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    shared = tmp_path_factory.getbasetemp() / "emoji-cache"
    monkeypatch.setenv("MEZZOTINT_CACHE", str(shared))


def test_the_set_is_intact_and_small():
    report = verify(str(EMOJI))
    assert report.problems == ()
    assert report.manifest.sample_count == 3823
    assert sum(path.stat().st_size for path in EMOJI.rglob("*") if path.is_file()) <= 15_000_000


def test_composition_is_the_complete_grid_of_roles_genders_and_tones():
    train, test = part("composition", "train"), part("composition", "test")
    cells = [
        (
            dataset.entry(n).attributes["role"],
            dataset.entry(n).attributes["gender"],
            dataset.entry(n).attributes["tone"],
        )
        for dataset in (train, test)
        for n in range(len(dataset))
    ]
    roles = {role for role, _, _ in cells}
    assert len(roles) == 66
    assert sorted(cells) == sorted(itertools.product(roles, ("man", "woman", "person"), TONES))
    assert len(test) == round(0.2 * len(cells)) == 238


def test_every_word_of_a_held_out_caption_is_seen_in_training_but_never_the_caption():
    train, test = part("composition", "train").captions(), part("composition", "test").captions()
    seen = {word for caption in train for word in WORD.findall(caption.lower())}
    assert {word for caption in test for word in WORD.findall(caption.lower())} <= seen
    assert not set(train) & set(test)


def test_captions_say_what_the_attributes_say():
    for name in ("train", "test"):
        dataset = part("composition", name)
        for index, caption in enumerate(dataset.captions()):
            attributes = dataset.entry(index).attributes
            plain, _, tone = caption.partition(": ")
            assert tone == (
                "" if attributes["tone"] == "none" else f"{attributes['tone']} skin tone"
            )
            words = plain.split()
            gendered = {"man", "woman", "person"} & set(words)
            assert gendered <= {attributes["gender"]}
            assert gendered or attributes["gender"] == "person"
            left = " ".join(word for word in words if word not in gendered)
            assert left == ("" if attributes["role"] == "adult" else attributes["role"])


def test_concepts_are_held_out_with_all_their_variants():
    train, test = part("concept", "train"), part("concept", "test")
    bases = [
        {dataset.entry(index).attributes["base"] for index in range(len(dataset))}
        for dataset in (train, test)
    ]
    assert not bases[0] & bases[1]
    assert len(bases[1]) == round(0.1 * len(bases[0] | bases[1]))
    assert len(train) + len(test) == 3823


def test_transparent_pixels_are_white():
    dataset = open_dataset(DataConfig(url=str(EMOJI), image=ImageConfig(size=136)))
    for index in range(0, len(dataset), 40):
        with Image.open(io.BytesIO(dataset.member(index, "png"))) as stored:
            clear = np.asarray(stored.convert("RGBA"))[..., 3] == 0
        image = dataset.sample(index).image
        assert (image[:4] == 255).all()  # 136 x 128 pixels padded to a square
        assert (image[4:132][clear] == 255).all()
        assert image.min() < 250


def test_licences_are_next_to_the_set():
    names = {path.name for path in (EMOJI / "LICENSES").iterdir()}
    assert names == {"OFL-1.1-noto-emoji.txt", "MIT-emojibase.txt", "Unicode-3.0-CLDR.txt"}
