"""Sample sets: what is asked, and what is on disk."""

import json

import pytest
import torch

from evaluation import samples
from evaluation.samples import Row
from mezzotint.common.errors import UserError
from mezzotint.inference.generator import Drawn


class Dice:
    """Draws noise from each seed; remembers nothing."""

    image_size = 4

    def draw(self, captions, seed):
        rng = torch.Generator().manual_seed(seed)
        shape = (len(captions), 3, 4, 4, 3)
        pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
        return Drawn(pictures, pictures.flatten(2).double().mean(dim=2))

    def reconstruct(self, pictures):
        return None

    def protocol(self):
        return {"kind": "dice"}


ROWS = [Row("composition", f"k{index}", f"caption {index}", 0) for index in range(7)]


def test_a_block_of_captions_is_drawn_the_same_wherever_it_stands():
    whole = samples.draw(Dice(), ROWS, seed=0, batch=2)
    later = samples.draw(Dice(), ROWS[2:4], seed=0, batch=2)
    assert torch.equal(whole.pictures[2:4], later.pictures)
    assert not torch.equal(whole.pictures, samples.draw(Dice(), ROWS, seed=1, batch=2).pictures)


def test_a_larger_limit_asks_the_same_captions_and_some_more():
    keys = [f"key{index}" for index in range(50)]
    few, more = samples.choose(keys, 10, 0), samples.choose(keys, 20, 0)
    assert more[:10] == few
    assert sorted(samples.choose(keys, None, 0)) == list(range(50))
    assert samples.choose(keys, 0, 0) == []


def test_the_chosen_sample_is_the_best_ranked_candidate():
    drawn = samples.draw(Dice(), ROWS, seed=0, batch=3)
    for index, best in enumerate(drawn.scores.argmax(dim=1).tolist()):
        assert torch.equal(drawn.chosen[index], drawn.pictures[index, best])


def test_a_sample_set_reads_back_as_written(tmp_path):
    drawn = samples.draw(Dice(), ROWS, seed=0, batch=3)
    real = {row.key: torch.zeros(4, 4, 3, dtype=torch.uint8) for row in ROWS}
    samples.write(drawn, tmp_path, real)
    back = samples.read(tmp_path)
    assert back.rows == drawn.rows
    assert torch.equal(back.pictures, drawn.pictures)
    assert torch.allclose(back.scores, drawn.scores, atol=1e-3)


def test_keys_and_captions_never_become_file_names(tmp_path):
    rows = [Row("train", "../../escape", "../../caption", 0)]
    out = tmp_path / "deep" / "out"
    samples.write(
        samples.draw(Dice(), rows, seed=0, batch=1),
        out,
        {"../../escape": torch.zeros(4, 4, 3, dtype=torch.uint8)},
    )
    outside = [path for path in tmp_path.rglob("*.png") if not path.is_relative_to(out)]
    assert outside == []
    entry = json.loads((out / "samples.jsonl").read_text())
    assert (entry["key"], entry["sample"]) == ("../../escape", "samples/000000.png")


def test_a_missing_picture_is_named(tmp_path):
    samples.write(
        samples.draw(Dice(), ROWS, seed=0, batch=3),
        tmp_path,
        {row.key: torch.zeros(4, 4, 3, dtype=torch.uint8) for row in ROWS},
    )
    (tmp_path / "candidates" / "000002.png").unlink()
    with pytest.raises(UserError, match="000002"):
        samples.read(tmp_path)


def test_asking_nothing_is_refused():
    with pytest.raises(UserError, match="limit"):
        samples.draw(Dice(), [], seed=0, batch=1)
