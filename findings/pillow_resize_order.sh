#!/usr/bin/env bash
# Pillow 13.0.0 against 12.0.0: which side Image.resize resizes first.
#
# Guess: always the width, as the sources of Pillow 12 and earlier do, so that the same image, size and filter give the
# same pixels in both versions.
# Behaviour: 13.0.0 resizes the height first for some shapes (23 x 72 to 10 x 32, 30 x 60 to 40 x 40). The result is
# rounded and clipped to 8 bits between the two passes, so that bicubic gives other pixels than 12.0.0 there: by up to
# 22 levels on noise. A square image to a square size is the same in both.
set -euo pipefail
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
cat >"$where/order.py" <<'PY'
import random

import PIL
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC
random.seed(0)
found = {}
for size, wanted in (((64, 64), (32, 32)), ((60, 45), (32, 32)), ((23, 72), (10, 32)), ((30, 60), (40, 40))):
    pixels = bytes(random.choice((0, 255)) for _ in range(size[0] * size[1] * 3))
    image = Image.frombytes("RGB", size, pixels)
    at_once = image.resize(wanted, BICUBIC).tobytes()
    width_first = image.resize((wanted[0], size[1]), BICUBIC).resize(wanted, BICUBIC).tobytes()
    height_first = image.resize((size[0], wanted[1]), BICUBIC).resize(wanted, BICUBIC).tobytes()
    assert (at_once == width_first) != (at_once == height_first)
    found[size, wanted] = "width" if at_once == width_first else "height"
    largest = max(abs(a - b) for a, b in zip(width_first, height_first))
    print(f"Pillow {PIL.__version__}: {size} to {wanted}: {found[size, wanted]} first; "
          f"the two orders differ by up to {largest} levels")
wanted = ["width"] * 4 if PIL.__version__ == "12.0.0" else ["width", "width", "height", "height"]
assert list(found.values()) == wanted, found
PY
for version in 12.0.0 13.0.0; do
    python3 -m venv "$where/$version"
    "$where/$version/bin/pip" install --quiet --no-deps "pillow==$version"
    "$where/$version/bin/python" "$where/order.py"
done
