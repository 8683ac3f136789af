#!/usr/bin/env bash
# sentencepiece 0.2.3, BPE training with character_coverage=1.0.
#
# Guess:     every sentence below max_sentence_length is trained on, whatever characters it has, and with a coverage of
#            1.0 every character of the sentences is a piece.
# Behaviour: a sentence with U+2585 (a block, as in progress bars and sparklines) is left out whole. In a sentence that
#            holds `<s>`, `</s>`, `<unk>` or `<pad>` as text that part is left out, so that `<` and `>` are no pieces
#            and encode as unknown. Nothing is raised; only a log line tells of the former.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check sentencepiece==0.2.3
cat > try.py <<'PY'
import io

import sentencepiece

CAPTIONS = [f"red square {number}" for number in range(50)]


def pieces(*more):
    """The model trained on the captions and fifty times each of `more`."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([*CAPTIONS, *more * 50]), model_writer=written, model_type="bpe", vocab_size=64,
        character_coverage=1.0, normalization_rule_name="identity", pad_id=3, minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def unknown(text, *more):
    model = pieces(*more)
    count = model.EncodeAsIds(text).count(model.unk_id())
    print(f"{text!r}: {count} unknown of {model.EncodeAsPieces(text)}")


unknown("zebra", "zebra \u2584 xylophone")
unknown("zebra", "zebra \u2585 xylophone")
unknown("a <b> tag", "a <b> tag")
unknown("a </s> tag", "a </s> tag")
PY
env/bin/python try.py | tee seen
diff seen - <<'SEEN'
'zebra': 0 unknown of ['▁zebra']
'zebra': 2 unknown of ['▁', 'z', 'e', 'b', 'r', 'a']
'a <b> tag': 0 unknown of ['▁a', '▁<', 'b', '>', '▁tag']
'a </s> tag': 2 unknown of ['▁a', '▁', '</', 's', '>', '▁tag']
SEEN
echo "as described"
