#!/usr/bin/env bash
# Pillow 13.0.0 with littleCMS 2.19.
#
# Guess:     a transform from a grey profile to sRGB is as exact as one from an RGB profile with the same curve: within
#            one level of the formula.
# Behaviour: with a linear curve (gamma 1) grey comes out up to 10 levels too dark, the same colours through an RGB
#            profile within one. The flag NOOPTIMIZE makes grey exact too. With gamma 2.2 both are within two.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check numpy==2.4.6 pillow==13.0.0
cat > try.py <<'PY'
import io
import struct

import numpy as np
from PIL import Image, ImageCms, features

print("littleCMS", features.version("littlecms2"))


def xyz(x, y, z):
    return struct.pack(">4s4x3i", b"XYZ ", *(round(one * 65536) for one in (x, y, z)))


def profile(space, gamma):
    """Version 2, with the primaries of sRGB."""
    curve = struct.pack(">4s4xIH2x", b"curv", 1, round(gamma * 256))
    tags = {b"wtpt": xyz(0.9642, 1, 0.8249), b"kTRC": curve}
    if space == b"RGB ":
        del tags[b"kTRC"]
        columns = (0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139)
        for name, column in zip((b"r", b"g", b"b"), columns):
            tags |= {name + b"XYZ": xyz(*column), name + b"TRC": curve}
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(tag))
        data += tag
    header = struct.pack(">I4xI12s12x4s28x12s", start + len(data), 0x02400000, b"mntr" + space + b"XYZ ",
                         b"acsp", xyz(0.9642, 1, 0.8249)[8:])
    return ImageCms.ImageCmsProfile(io.BytesIO(header.ljust(128, b"\0") + table + data))


levels = np.arange(256, dtype=np.uint8)[None]
srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
for gamma in (1.0, 2.2):
    linear = (levels / 255) ** gamma
    right = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    for space, mode, flags in ((b"RGB ", "RGB", 0), (b"GRAY", "L", 0), (b"GRAY", "L", ImageCms.Flags.NOOPTIMIZE)):
        image = Image.fromarray(levels).convert(mode)
        transform = ImageCms.ImageCmsTransform(profile(space, gamma), srgb, mode, "RGB", flags=ImageCms.Flags(flags))
        error = np.abs(np.asarray(transform.apply(image))[..., 1] - right).max()
        print(f"gamma {gamma}, {mode}{', NOOPTIMIZE' if flags else ''}: at most {error:.0f} levels off")
PY
env/bin/python try.py | tee seen
diff seen - <<'SEEN'
littleCMS 2.19
gamma 1.0, RGB: at most 1 levels off
gamma 1.0, L: at most 10 levels off
gamma 1.0, L, NOOPTIMIZE: at most 0 levels off
gamma 2.2, RGB: at most 1 levels off
gamma 2.2, L: at most 1 levels off
gamma 2.2, L, NOOPTIMIZE: at most 1 levels off
SEEN
echo "as described"
