import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.text.captions import normalise
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.errors import UserError

RNG = np.random.default_rng(0)
KNOWN = st.lists(
    st.sampled_from(["red", "dark", "woman", "firefighter:", "squares", "squid", "7", "tone"]),
    max_size=8,
).map(" ".join)
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.one_of(KNOWN, ANY))
def test_without_dropout_the_merge_loop_equals_sentencepiece(tokenizer, caption):
    assert tokenizer.encode_dropout(caption, 40, 0.0, RNG) == tokenizer.encode(caption, 40)


@given(KNOWN, st.floats(0.0, 0.99))
def test_dropout_spells_the_same_caption(tokenizer, caption, probability):
    ids = tokenizer.encode_dropout(caption, 200, probability, np.random.default_rng(1))
    plain = tokenizer.encode(caption, 200)
    assert tokenizer.decode(ids) == tokenizer.decode(plain)


def test_dropout_depends_on_the_generator_alone(tokenizer):
    caption = "woman firefighter: dark skin tone"
    samples = [
        tokenizer.encode_dropout(caption, 60, 0.5, np.random.default_rng(seed))
        for seed in (5, 5, 6, 7)
    ]
    assert samples[0] == samples[1]
    assert len({tuple(ids) for ids in samples}) == 3


def test_certain_dropout_leaves_characters(tokenizer):
    almost_one = np.nextafter(1.0, 0.0)
    ids = tokenizer.encode_dropout("dark tone", 40, almost_one, np.random.default_rng(0))
    assert ids.index(tokenizer.end_id) == len("▁dark▁tone")


@pytest.mark.parametrize("length", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("dropout", [False, True])
def test_captions_are_cut_before_the_end_id_or_padded_to_length(tokenizer, length, dropout):
    def encode(length):
        if dropout:
            return tokenizer.encode_dropout("red square", length, 0.5, np.random.default_rng(3))
        return tokenizer.encode("red square", length)

    *pieces, end = [id_ for id_ in encode(40) if id_ > 0]
    kept = pieces[: length - 1]
    assert end == tokenizer.end_id
    assert encode(length) == [*kept, end] + [0] * (length - len(kept) - 1)


@given(st.one_of(KNOWN, ANY), st.integers(1, 30))
def test_what_is_lost_is_the_end_of_the_caption(tokenizer, caption, length):
    text, whole = normalise(caption), tokenizer.encode(caption, 400)
    kept, lost = tokenizer.encode(caption, length), tokenizer.lost(caption, length)
    fits = whole.index(tokenizer.end_id) < length
    assert (lost == "") == fits
    assert text.endswith(lost)
    if fits:
        assert kept == whole[:length]
    else:
        beginning = text.removesuffix(lost)
        assert kept[:-1] == whole[: length - 1]
        if tokenizer.unknown_id not in whole:
            assert tokenizer.decode(kept).strip() == beginning.strip()


def test_captions_that_differ_late_share_all_but_the_end(tokenizer):
    one, other = "woman firefighter: dark skin tone", "woman firefighter: dark skin red"
    ids = tokenizer([one, other], 6)
    assert torch.equal(ids[0], ids[1])
    assert ids[0, -1] == tokenizer.end_id
    assert tokenizer.lost(one, 6) != tokenizer.lost(other, 6)


def test_captions_are_compared_in_lower_case_nfkc(tokenizer):
    assert normalise("  Red\n SQUARE\tﬁ ") == "red square fi"
    assert tokenizer.encode("RED  Square", 9) == tokenizer.encode("red square", 9)


def test_a_batch_of_captions_is_an_int64_tensor(tokenizer):
    text = tokenizer(["red square", "dark"], 7)
    assert text.dtype == torch.int64
    assert text.tolist() == [tokenizer.encode("red square", 7), tokenizer.encode("dark", 7)]
    assert tokenizer([], 7).shape == (0, 7)


def test_training_again_gives_the_same_bytes():
    captions = [f"an image of {number}" for number in range(50)]
    assert Tokenizer.train(captions, 40) == Tokenizer.train(captions, 40)
    assert Tokenizer(Tokenizer.train(captions, 40)).vocab_size == 40


def test_a_tokenizer_loads_from_its_directory_or_file(tokenizer_directory, tokenizer):
    for path in (tokenizer_directory, f"{tokenizer_directory}/tokenizer.model"):
        assert Tokenizer.load(path).sha256 == tokenizer.sha256


def test_a_missing_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"tokenizer\.model: no such file"):
        Tokenizer.load(str(tmp_path))


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(b"\x00\x01 not a model")
    with pytest.raises(UserError, match=r"tokenizer\.model: is no sentencepiece model"):
        Tokenizer.load(str(tmp_path))


def test_a_tokenizer_can_be_pickled(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("red square", 9) == tokenizer.encode("red square", 9)
