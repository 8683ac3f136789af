"""Training a tokenizer: sizes that the messages name work, and every caption is accounted for."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.text.train_tokenizer import TokenizerOptions, train_tokenizer
from mezzotint.common.errors import UserError

RED = [f"red square {number}" for number in range(50)]
# 3,000 captions over 5,000 characters, each about as often as the others
CJK = ["".join(chr(0x4E00 + (n * 7 + at) % 5000) for at in range(10)) for n in range(3000)]
COMMON = ["的一是" * 40] * 200


def message(captions, *options):
    with pytest.raises(UserError) as error:
        train_tokenizer(captions, TokenizerOptions(*options))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("captions", [RED, ["one caption", "another"], ["x"]])
def test_the_largest_vocabulary_in_a_message_works_and_a_larger_one_does_not(captions):
    largest = int(re.search(r"choose --vocab (\d+) or less", message(captions, 100_000))[1])
    content = train_tokenizer(captions, TokenizerOptions(largest)).content
    assert Tokenizer(content).vocab_size == largest
    message(captions, largest + 1)


@pytest.mark.parametrize("bytes_", [False, True])
def test_the_smallest_vocabulary_in_a_message_works_and_a_smaller_one_does_not(bytes_):
    smallest = int(re.search(r"choose --vocab (\d+) or more", message(RED, 6, 1.0, bytes_))[1])
    content = train_tokenizer(RED, TokenizerOptions(smallest, 1.0, bytes_)).content
    assert Tokenizer(content).vocab_size == smallest
    message(RED, smallest - 1, 1.0, bytes_)


def test_the_coverage_in_a_message_works():
    captions = CJK + COMMON
    text = message(captions, 4000)
    assert "5,002 different characters" in text
    assert "choose --vocab 5007 or more, or --character-coverage 0." in text
    assert "--byte-fallback then spells the other characters" in text
    for bytes_ in (False, True):
        text = message(captions, 4000, 1.0, bytes_)
        coverage = float(re.search(r"--character-coverage (\S+) or less", text)[1])
        trained = train_tokenizer(captions, TokenizerOptions(4000, coverage, bytes_))
        assert Tokenizer(trained.content).vocab_size == 4000
        assert trained.characters + trained.uncovered == 5002
        assert f"{trained.uncovered:,} different characters are no pieces" in trained.notes()[0]


@pytest.fixture(scope="module")
def bytewise():
    options = TokenizerOptions(320, 0.9, byte_fallback=True)
    return Tokenizer(train_tokenizer([*RED, "rare: é 的 <0x41> <0xE4>"], options).content)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_byte_fallback_spells_every_caption(bytewise, caption):
    ids = bytewise.encode(caption, 200)
    assert bytewise.unknown_id not in ids
    assert bytewise.encode_dropout(caption, 200, 0.0, np.random.default_rng(0)) == ids


def test_characters_without_coverage_are_spelled_in_bytes(bytewise):
    ids = bytewise.encode("é", 9)
    assert len(ids[: ids.index(bytewise.end_id)]) == 3  # the mark of a space and two bytes
    assert bytewise.decode(bytewise.encode("red é 的 <0x41>", 40)) == "red é 的 <0x41>"


def test_every_caption_is_used_or_counted():
    captions = [
        *RED,
        "",
        " \n ",
        "nul\0here",
        "\u2581\u2585",
        "a \u2585 block",
        "under\u2581line",
        "<s> marks </s>",
        "z" * 65_536,
        "z" * 65_537,
        "\u7684" * 21_846,
    ]
    trained = train_tokenizer(captions, TokenizerOptions(60))
    assert (trained.empty, trained.too_long, trained.reserved) == (3, 2, 5)
    assert trained.captions + trained.empty + trained.too_long == len(captions)
    assert [note.split(" ", 1)[0] for note in trained.notes()] == ["2", "3", "5"]
    assert train_tokenizer(RED, TokenizerOptions(60)).notes() == []


def test_a_caption_with_a_reserved_symbol_is_trained_on():
    trained = train_tokenizer([*RED, *["zebra \u2585 xylophone"] * 50], TokenizerOptions(60))
    pieces = Tokenizer(trained.content)
    assert len([id_ for id_ in pieces.encode("zebra", 9) if id_ > 3]) == 1


@pytest.mark.parametrize("coverage", [0.0, -1.0, 1.5, float("nan")])
def test_impossible_coverages_are_refused(coverage):
    assert "--character-coverage" in message(RED, 60, coverage)


def test_no_captions_are_refused():
    assert "there is no caption to train a tokenizer on" in message(["", " "], 60)


def test_full_coverage_is_what_sentencepiece_trains_by_itself():
    assert train_tokenizer(RED, TokenizerOptions(60)).content == Tokenizer.train(RED, 60)
