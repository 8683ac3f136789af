"""torchvision beside a CPU build of torch."""

import subprocess
import sys


def test_open_clip_imports_in_a_fresh_process_after_the_answer():
    code = (
        "from models.torchvision_compat import ensure_torchvision\n"
        "ensure_torchvision(); ensure_torchvision()\n"
        "import torchvision.ops, open_clip\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
