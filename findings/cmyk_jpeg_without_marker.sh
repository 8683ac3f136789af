#!/usr/bin/env bash
# Pillow 13.0.0, simplejpeg 1.9.0, OpenCV 5.0.0 and libvips 8.18.7, all on libjpeg-turbo.
#
# Guess:     a CMYK JPEG without Adobe's APP14 marker holds plain ink, as libjpeg's documentation says, and only one with
#            the marker holds inverted ink; at least libvips, which reads the marker, tells them apart.
# Behaviour: all four take the ink as inverted with and without the marker: stored (255, 0, 0, 255) is red either way,
#            and the plain ink of red, (0, 255, 255, 0), is black either way.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check numpy==2.4.6 pillow==13.0.0 simplejpeg==1.9.0 \
    opencv-python-headless==5.0.0.93 pyvips==3.2.0 pyvips-binary==8.18.7
cat > try.py <<'PY'
import io
import struct

import cv2
import numpy as np
import pyvips
import simplejpeg
from PIL import Image


def encoded(stored, marker):
    content = io.BytesIO()
    ink = tuple(255 - level for level in stored)  # Pillow inverts what it writes
    Image.new("CMYK", (16, 16), ink).save(content, "JPEG", quality=100)
    jpeg = content.getvalue()
    if marker:
        return jpeg
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0] :]


def name(rgb):
    return {(255, 0, 0): "red", (0, 0, 0): "black"}[tuple(255 * (int(level) > 127) for level in rgb)]


for stored in ((255, 0, 0, 255), (0, 255, 255, 0)):
    for marker in (True, False):
        jpeg = encoded(stored, marker)
        cyan, magenta, yellow, black = pyvips.Image.new_from_buffer(jpeg, "")(8, 8)
        seen = {
            "Pillow": Image.open(io.BytesIO(jpeg)).convert("RGB").getpixel((8, 8)),
            "simplejpeg": simplejpeg.decode_jpeg(jpeg)[8, 8],
            "OpenCV": cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[8, 8, ::-1],
            "libvips": [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)],
        }
        names = ", ".join(f"{reader} {name(rgb)}" for reader, rgb in seen.items())
        print(stored, "marker:" if marker else "no marker:", names)
PY
env/bin/python -W ignore try.py 2>/dev/null | tee seen
diff seen - <<'SEEN'
(255, 0, 0, 255) marker: Pillow red, simplejpeg red, OpenCV red, libvips red
(255, 0, 0, 255) no marker: Pillow red, simplejpeg red, OpenCV red, libvips red
(0, 255, 255, 0) marker: Pillow black, simplejpeg black, OpenCV black, libvips black
(0, 255, 255, 0) no marker: Pillow black, simplejpeg black, OpenCV black, libvips black
SEEN
echo "as described"
