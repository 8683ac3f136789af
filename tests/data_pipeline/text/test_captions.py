"""Which of a sample's captions is read, and when."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, TextConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.sample_order import draw, sample_rng
from data_pipeline.stream import Stream
from data_pipeline.text.captions import caption_lines, choose, is_visible

THREE = ("a red square", "a square of red", "red, four equal sides")


def test_every_line_is_a_caption():
    assert caption_lines("\n a red square \r\n\n  two\rthree\n") == ("a red square", "two", "three")
    assert caption_lines(" \n\t\n") == ()
    assert caption_lines("one\u2028caption\x0bwith\x85separators") == (
        "one\u2028caption\x0bwith\x85separators",
    )


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n")).map(str.strip).filter(is_visible))
)
def test_lines_that_are_written_are_read(captions):
    assert caption_lines("\n".join(captions)) == tuple(captions)


@pytest.fixture
def several(tmp_path):
    write_shards(
        [
            RawSample("0", {"txt": "\n".join(THREE).encode()}),
            RawSample("1", {"txt": b"\xef\xbb\xbfonly one\n"}),
        ],
        str(tmp_path / "several"),
        name="several",
        licence="CC0-1.0",
        provenance={},
        shard_size=2,
        fields={},
    )
    return str(tmp_path / "several")


def opened(url, tokenizer=None, captions="random", **options):
    length = None if tokenizer is None else 12
    text = TextConfig(tokenizer=tokenizer, length=length, captions=captions)
    return open_dataset(DataConfig(url=url, text=text, **options))


def drawn(dataset, epochs=60, **options):
    """The caption of sample 0 in every epoch, as a stream yields it."""
    stream = Stream(dataset, global_batch=2, rank=0, world=1, seed=3, **options)
    batches = iter(stream)
    found = [next(batches) for _ in range(epochs)]
    batches.close()
    assert all(set(batch.keys) == {"0", "1"} for batch in found)
    return [batch.captions[batch.keys.index("0")] for batch in found]


def test_training_draws_a_caption_per_epoch_and_nothing_else_does(several):
    dataset = opened(several)
    found = drawn(dataset)
    assert set(Counter(found)) == set(THREE)
    assert min(Counter(found).values()) > 8
    assert dataset.captions() == (THREE[0], "only one")
    assert dataset.batch([0]).captions == (THREE[0],)
    assert tuple(dataset.all_captions()) == (*THREE, "only one")


def test_the_draw_depends_on_seed_epoch_and_sample_alone(several):
    dataset = opened(several)
    found = drawn(dataset, epochs=12)
    assert drawn(opened(several), epochs=12) == found
    assert drawn(opened(several, workers=1), epochs=12) == found
    half = Stream(dataset, global_batch=2, rank=0, world=1, seed=3).state_after(5)
    assert drawn(dataset, epochs=7, state=half) == found[5:]
    assert [dataset.caption(0, seed=3, epoch=epoch) for epoch in range(12)] == found
    assert [dataset.caption(0, seed=4, epoch=epoch) for epoch in range(12)] != found


def test_first_and_joined_are_the_same_everywhere(several):
    assert set(drawn(opened(several, captions="first"), epochs=9)) == {THREE[0]}
    joined = opened(several, captions="joined")
    assert set(drawn(joined, epochs=9)) == {" ".join(THREE)}
    assert joined.captions() == (" ".join(THREE), "only one")


def test_the_tokens_are_those_of_the_drawn_caption(several, tokenizer_directory, tokenizer):
    dataset = opened(several, tokenizer_directory)
    for epoch in range(6):
        sample = dataset.sample(0, seed=3, epoch=epoch)
        assert sample.text.tolist() == tokenizer.encode(sample.caption, 12)


def test_a_run_does_not_resume_with_another_choice(several):
    prints = {opened(several, captions=one).fingerprint for one in ("random", "first", "joined")}
    assert len(prints) == 3
    assert opened(several).fingerprint == open_dataset(DataConfig(url=several)).fingerprint


def test_the_draw_is_independent_of_the_augmentation():
    first = [sample_rng(3, epoch, 0).integers(3) for epoch in range(40)]
    assert [draw(3, 3, epoch, 0) for epoch in range(40)] != first


def test_a_sample_without_a_caption_line_has_the_empty_caption():
    assert choose((), "random", (0, 0, 0)) == choose((), "joined", (0, 0, 0)) == ""


@pytest.mark.parametrize(
    "text", [{"tokenizer": "t"}, {"length": 4}, {"dropout": 0.1}, {"captions": "all"}]
)
def test_impossible_text_settings_are_refused(text):
    with pytest.raises(ValueError, match="validation error"):
        TextConfig.model_validate(text)
