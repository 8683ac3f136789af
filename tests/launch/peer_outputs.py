"""What diffusers, transformers and open_clip make of exported files, in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

PROGRAM = Path(__file__).parent / "weights" / "peer_libraries.py"


def outputs_of_peers(home, given, jobs):
    """The outputs of `peer_libraries.py` for given tensors; files are kept in `home`."""
    save_file(given, home / "given.safetensors")
    words = [sys.executable, PROGRAM, home / "given.safetensors", home / "out.safetensors"]
    done = subprocess.run(
        [*map(str, words), json.dumps(jobs)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(home / "out.safetensors")


def furthest(one, other):
    """The largest difference of two outputs of one shape, which are not constant."""
    assert one.shape == other.shape
    assert float(one.std()) > 0.05
    return float((one - other).abs().max())
