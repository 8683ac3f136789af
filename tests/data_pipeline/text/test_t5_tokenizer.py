"""Tokenizers by the style of their sentencepiece model."""

import io

import pytest
import sentencepiece

from data_pipeline.text.t5_tokenizer import T5Tokenizer, tokenizer_of
from data_pipeline.text.token_lengths import read_tokenizer, token_lengths
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.errors import UserError

WORDS = [f"{who} {what}" for who in ("Woman", "man", "person") for what in ("pilot", "cook")]


def pieces(**ids):
    """A sentencepiece model as T5's is, with its own normalisation."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(WORDS),
        model_writer=written,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
        **({"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} | ids),
    )
    return written.getvalue()


def test_captions_end_with_the_end_id_and_are_padded_or_truncated():
    content = pieces()
    tokenize = tokenizer_of("t5", content, "spiece.model")
    assert isinstance(tokenize, T5Tokenizer)
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    ids = model.encode("Woman pilot")
    full, empty = tokenize(["Woman pilot", ""], 40).tolist()
    assert full == [*ids, 1, *[0] * (39 - len(ids))]
    assert empty == [1, *[0] * 39]
    assert tokenize(["Woman pilot"], 3).tolist() == [[*ids[:2], 1]]
    assert tokenize([], 3).shape == (0, 3)
    assert tokenize.lost("Woman pilot", len(ids) + 1) == ""
    assert tokenize.lost("Woman  pilot", 2) == "Woman  pilot"[len(model.id_to_piece(ids[0])) - 1 :]
    assert tokenize.lost("Woman pilot", len(ids)) == model.id_to_piece(ids[-1])


def test_a_model_of_the_other_style_is_refused():
    own = Tokenizer.train(WORDS, 40)
    assert isinstance(tokenizer_of("own", own, "tokenizer.model"), Tokenizer)
    with pytest.raises(UserError, match=r"x: its special ids are .*, not .*'unk': 2}; put T5's"):
        tokenizer_of("t5", own, "x")
    with pytest.raises(UserError, match=r"x: its special ids are .*, not .*'eos': 3}; train"):
        tokenizer_of("own", pieces(), "x")
    with pytest.raises(UserError, match="x: is no sentencepiece model; put T5's"):
        tokenizer_of("t5", b"nothing", "x")


def test_a_folder_with_t5s_pieces_is_read_as_its_tokenizer(tmp_path):
    (tmp_path / "spiece.model").write_bytes(pieces())
    tokenizer = read_tokenizer(str(tmp_path))
    assert isinstance(tokenizer, T5Tokenizer)
    found = token_lengths(["Woman pilot", "man"], tokenizer, "t5", 3)
    assert found.longest == tokenizer.count("Woman pilot") > 3
    assert found.cut is not None
    assert found.cut.cut == 1 + (tokenizer.count("man") > 3)
