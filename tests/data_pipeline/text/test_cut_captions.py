"""How many captions of a set are cut at a length."""

from data_pipeline.config import DataConfig, TextConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.text.cut_captions import count_cut, sampled_captions, shown
from data_pipeline.text.tokenizer import TokenizerAt


def test_captions_that_are_cut_are_counted_with_the_end_of_the_first(tokenizer):
    captions = ["red", "dark square 7", "red", "dark square 8"]
    length = max(tokenizer.count(each) for each in captions) - 1
    found = count_cut(captions, TokenizerAt(tokenizer, length), "data.text")
    assert (found.read, found.cut, found.share) == (4, 2, 0.5)
    assert captions[1].endswith(found.example)
    assert found.to_text() == (
        f"2 of 4 captions read (50.0%) are longer than the {length} tokens of data.text and cut, "
        f"one before '{found.example}'"
    )
    fitting = count_cut(captions, TokenizerAt(tokenizer, length + 1), "data.text")
    assert fitting.cut == 0
    assert fitting.to_text().endswith(
        f"0 of 4 captions read (0.0%) are longer than the {length + 1} tokens of data.text"
    )
    assert count_cut([], TokenizerAt(tokenizer, 3), "x").share == 0


def test_captions_are_read_from_a_few_shards(tmp_path):
    lines = [f"caption {number}\nthe same, {number}" for number in range(60)]
    url = str(tmp_path / "set")
    write_shards(
        (
            RawSample(f"{n:02d}", {"txt": text.encode()}, parts={"all": "train"})
            for n, text in enumerate(lines)
        ),
        url,
        name="lines",
        licence="none",
        provenance={},
        shard_size=5,
        fields={"txt": "captions"},
        splits={"all": "everything"},
    )
    every = open_dataset(DataConfig(url=url))
    assert len(sampled_captions(every)) == 4 * 5 * 2
    few = sampled_captions(every, most=8)
    assert len(few) == 4 * 2 * 2
    assert few[:2] == ["caption 0", "the same, 0"]
    assert few[-1] == "the same, 59"
    for choice, wanted in (("first", "caption 0"), ("joined", "caption 0 the same, 0")):
        dataset = open_dataset(DataConfig(url=url, text=TextConfig(captions=choice)))
        assert sampled_captions(dataset)[0] == wanted
        assert len(sampled_captions(dataset)) == 4 * 5


def test_a_text_is_shown_short_and_on_one_line():
    assert shown("a\nb\x1b") == r"'a\nb\x1b'"
    assert shown("x" * 100) == f"'{'x' * 60}...'"
