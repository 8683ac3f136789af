"""Training a sentencepiece BPE model, with an account of every caption.

sentencepiece leaves out captions above a size and those with its unknown symbol, splits others at
symbols of its own, and says so in its log only. Its character coverage is at least 0.98. Here the
captions are prepared so that it uses all of them, and what was changed is counted.
"""

import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import sentencepiece

from data_pipeline.text.captions import normalise
from mezzotint.common.errors import UserError

SPECIAL_IDS = {"pad": 0, "unk": 1, "bos": 2, "eos": 3}

_BYTES = 256
"""Pieces that byte fallback adds."""
_LONGEST_CAPTION = 1 << 16
"""Bytes; longer ones are left out."""
_RESERVED = re.compile(r"[\0\u2581\u2585]|<pad>|<unk>|</?s>")
"""sentencepiece's own symbols in a normalised caption, and the character that ends its texts."""


@dataclass(frozen=True)
class TokenizerOptions:
    """How the vocabulary is made."""

    vocab: int
    """Pieces, with the special ones."""
    character_coverage: float = 1.0
    """Share of the characters of the captions, most frequent first, that are pieces."""
    byte_fallback: bool = False
    """Spell other characters in 256 pieces of one byte each, instead of as the unknown piece."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """The content of `tokenizer.model`, and the account of the captions."""

    content: bytes
    captions: int
    """Captions it was trained on."""
    empty: int
    """Captions without a character."""
    too_long: int
    """Captions left out because they have more than 65,536 bytes."""
    reserved: int
    """Captions in which symbols that sentencepiece reserves were read as spaces."""
    characters: int
    """Different characters that are pieces."""
    uncovered: int
    """Different characters that are not."""

    def notes(self) -> list[str]:
        """What is worth saying of the captions, a sentence each."""
        counts = {
            f"captions above {_LONGEST_CAPTION:,} bytes left out": self.too_long,
            "captions without a character left out": self.empty,
            "captions with symbols that sentencepiece reserves (NUL, U+2581, U+2585, <s>, <pad>, "
            "...), read as spaces": self.reserved,
            "different characters are no pieces (--character-coverage)": self.uncovered,
        }
        return [f"{count:,} {text}" for text, count in counts.items() if count]


def train_tokenizer(captions: Iterable[str], options: TokenizerOptions) -> TrainedTokenizer:
    """Train a BPE model of exactly `options.vocab` pieces.

    The same captions give the same bytes.

    Raises:
        UserError: The captions have too few or too many different pieces for this vocabulary.
    """
    if not 0 < options.character_coverage <= 1:
        raise UserError(
            f"--character-coverage {options.character_coverage}: give a number above 0, at most 1"
        )
    kept: list[str] = []
    counts = Counter[str]()
    characters = Counter[str]()
    for caption in captions:
        text = normalise(caption)
        plain = normalise(_RESERVED.sub(" ", text))
        counts["reserved"] += plain != text
        if not plain:
            counts["empty"] += 1
        elif len(plain.encode()) > _LONGEST_CAPTION:
            counts["too long"] += 1
        else:
            kept.append(plain)
            characters.update(plain.replace(" ", ""))
    covered = _covered(characters, options.character_coverage)
    _check_vocabulary(kept, characters, len(covered), options)
    return TrainedTokenizer(
        content=_train(_only(kept, characters.keys() - covered), options),
        captions=len(kept),
        empty=counts["empty"],
        too_long=counts["too long"],
        reserved=counts["reserved"],
        characters=len(covered),
        uncovered=len(characters) - len(covered),
    )


def _ranked(characters: Counter[str]) -> list[tuple[str, int]]:
    """The characters with their counts, the most frequent first, equal ones by code point."""
    return sorted(characters.items(), key=lambda one: (-one[1], one[0]))


def _covered(characters: Counter[str], coverage: float) -> set[str]:
    """The fewest characters that are this share of all."""
    total, seen = characters.total(), 0
    covered: set[str] = set()
    for character, count in _ranked(characters):
        if seen >= coverage * total:
            break
        covered.add(character)
        seen += count
    return covered


def _only(captions: Iterable[str], uncovered: set[str]) -> Iterable[str]:
    """The captions with other characters as spaces, so that no piece has one."""
    if not uncovered:
        return captions
    table = str.maketrans(dict.fromkeys(uncovered, " "))
    return (" ".join(caption.translate(table).split()) for caption in captions)


def _fixed(options: TokenizerOptions) -> int:
    """Pieces that are no characters: special ones, the mark of a space, bytes."""
    return len(SPECIAL_IDS) + 1 + (_BYTES if options.byte_fallback else 0)


def _check_vocabulary(
    captions: list[str], characters: Counter[str], covered: int, options: TokenizerOptions
) -> None:
    """Refuse a vocabulary that is too small for the covered characters."""
    if not captions:
        raise UserError("there is no caption to train a tokenizer on; check the set and selection")
    needed, available = covered + _fixed(options), options.vocab - _fixed(options)
    if options.vocab >= needed:
        return
    message = (
        f"vocab={options.vocab}: the captions have {covered:,} different characters to cover, "
        f"which need a vocabulary of at least {needed}"
        + (f" with {_BYTES} byte pieces" if options.byte_fallback else "")
        + f"; choose --vocab {needed} or more"
    )
    if available > 0:
        share = sum(count for _, count in _ranked(characters)[:available]) / characters.total()
        message += f", or --character-coverage {int(share * 1e4) / 1e4:g} or less"
        if not options.byte_fallback:
            message += " (--byte-fallback then spells the other characters, with 256 more pieces)"
    raise UserError(message)


def _train(captions: Iterable[str], options: TokenizerOptions) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(captions),
            model_writer=model,
            model_type="bpe",
            vocab_size=options.vocab,
            character_coverage=1.0,  # done by `_only`
            byte_fallback=options.byte_fallback,
            normalization_rule_name="identity",  # done by `normalise`
            max_sentence_length=_LONGEST_CAPTION,
            num_threads=1,
            pad_id=SPECIAL_IDS["pad"],
            unk_id=SPECIAL_IDS["unk"],
            bos_id=SPECIAL_IDS["bos"],
            eos_id=SPECIAL_IDS["eos"],
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        if largest := re.search(r"Vocabulary size too high .*<= (\d+)", reason):
            raise UserError(
                f"vocab={options.vocab}: the captions have {largest[1]} different pieces in all; "
                f"choose --vocab {largest[1]} or less, or more captions"
            ) from error
        raise UserError(
            f"vocab={options.vocab}: no tokenizer of this size can be trained on these captions "
            f"({reason}); choose another size"
        ) from error
    return model.getvalue()
