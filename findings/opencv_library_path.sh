#!/usr/bin/env bash
# Guess: importing a Python module leaves the environment of later child processes as it was.
# Behaviour: `import cv2` of opencv-python-headless 4.14.0.94 sets LD_LIBRARY_PATH to a folder beside the package and
# an empty entry, so that programs started afterwards look for libraries there and in their working directory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q opencv-python-headless==4.14.0.94 numpy==2.4.6
env -u LD_LIBRARY_PATH "$folder/venv/bin/python" - <<'PYTHON'
import os
import subprocess

assert "LD_LIBRARY_PATH" not in os.environ
import cv2

child = subprocess.run(["sh", "-c", 'printf %s "$LD_LIBRARY_PATH"'], capture_output=True, text=True).stdout
print(f"opencv {cv2.__version__}: LD_LIBRARY_PATH of a child process is '{child}'")
assert child.endswith("/cv2/../../lib64:"), child
PYTHON
