"""A tokenizer of this project as `tokenizer.json`, which transformers and open_clip read."""

import json
from collections.abc import Sequence

import sentencepiece

from data_pipeline.text.tokenizer import Tokenizer, load_sentencepiece
from data_pipeline.text.train_tokenizer import SPECIAL_IDS

SPACE = "\u2581"
"""sentencepiece's mark of a space."""
_METASPACE = {
    "type": "Metaspace",
    "replacement": SPACE,
    "prepend_scheme": "always",
    "split": True,
}
_WHITESPACE = r"[\s\x1c-\x1f\x85]+"
"""What Python's `str.split` takes as spaces."""
_LAST_SIGMA = r"(?<=\p{L})\u03a3(?!\p{L})"
"""A capital that `str.lower` writes differently at the end of a word."""


def tokenizer_files(tokenizer: Tokenizer, length: int) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json` by name, for captions of `length` ids.

    The same ids as `Tokenizer` gives: NFKC, lower case, single spaces, BPE, the end id, cut and
    padded with 0. Texts that spell a special piece, such as `</s>`, are read as that piece there.
    """
    model = load_sentencepiece(tokenizer.model_bytes, "tokenizer", SPECIAL_IDS, "")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": _encoded(_tree(model)),
        "tokenizer_config.json": _encoded(config),
    }


def _replace(pattern: str, by: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": by}


def _encoded(tree: object) -> bytes:
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()


def _tree(model: sentencepiece.SentencePieceProcessor) -> dict[str, object]:
    ids = range(model.GetPieceSize())
    pieces = [str(model.IdToPiece(id_)) for id_ in ids]
    end = pieces[Tokenizer.end_id]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(id_, pieces[id_]) for id_ in sorted(SPECIAL_IDS.values())],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFKC"},
                _replace(_LAST_SIGMA, "\u03c2"),
                {"type": "Lowercase"},
                _replace(_WHITESPACE, " "),
                {"type": "Strip", "strip_left": True, "strip_right": True},
            ],
        },
        "pre_tokenizer": _METASPACE,
        "post_processor": _ended_by(end),
        "decoder": _METASPACE,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[Tokenizer.unknown_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(model.IsByte(id_) for id_ in ids),
            "ignore_merges": False,
            "vocab": {piece: id_ for id_, piece in enumerate(pieces)},
            "merges": _merges(model, pieces),
        },
    }


def _special(id_: int, piece: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": piece, **flags, "special": True}


def _ended_by(end: str) -> dict[str, object]:
    """The rule that appends the end id."""

    def part(name: str, type_id: int) -> list[dict[str, object]]:
        return [
            {"Sequence": {"id": name, "type_id": type_id}},
            {"SpecialToken": {"id": end, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": [*part("A", 0), *part("B", 1)],
        "special_tokens": {end: {"id": end, "ids": [Tokenizer.end_id], "tokens": [end]}},
    }


def _merges(
    model: sentencepiece.SentencePieceProcessor, pieces: Sequence[str]
) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, the one of the best score first."""
    plain = {
        piece: model.GetScore(id_)
        for id_, piece in enumerate(pieces)
        if not (model.IsControl(id_) or model.IsUnknown(id_) or model.IsByte(id_))
    }
    ranked = sorted((piece for piece in plain if len(piece) > 1), key=lambda one: -plain[one])
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in plain and piece[cut:] in plain
    ]
