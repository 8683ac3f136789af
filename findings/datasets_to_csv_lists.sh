#!/usr/bin/env bash
# datasets 5.2.0 (with pandas 3.1.1, numpy 2.4.6, pyarrow 25.0.1).
#
# Guess:     `Dataset.to_csv` writes a column of lists of texts so that each list can be read back: as JSON, or at least
#            as Python writes it.
# Behaviour: it writes what numpy prints of an array: no commas, and more than 1,000 texts are cut to six with `...`
#            between them. `ast.literal_eval` reads `['a cat' 'a kitten']` without an error, as one text. `to_json`
#            writes lists. Nothing is said in either case.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check datasets==5.2.0 pandas==3.1.1 numpy==2.4.6 pyarrow==25.0.1
cat > try.py <<'PY'
import ast
import csv

import datasets

datasets.disable_progress_bars()
data = datasets.Dataset.from_dict({"captions": [["a cat", "a kitten"], [str(one) for one in range(1001)]]})
data.to_csv("t.csv")
data.to_json("t.jsonl")
with open("t.csv", newline="") as file:
    short, long = (row["captions"] for row in csv.DictReader(file))
print("CSV:", short)
print("read back:", ast.literal_eval(short))
print("1,001 texts:", long)
print("JSON Lines:", open("t.jsonl").readline().strip())
PY
env/bin/python -W ignore try.py | tee seen
diff seen - <<'SEEN'
CSV: ['a cat' 'a kitten']
read back: ['a cata kitten']
1,001 texts: ['0' '1' '2' ... '998' '999' '1000']
JSON Lines: {"captions":["a cat","a kitten"]}
SEEN
echo "as described"
