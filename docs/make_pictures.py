"""The pictures of these pages, from a finished quickstart:  .venv/bin/python docs/make_pictures.py

Headless Chromium photographs the result page and the dashboard, which is started for the purpose;
the evaluations' picture sheets are copied. Everything goes to docs/images/, each file small.
"""

import argparse
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
LARGEST = 400_000
"""Bytes of a picture."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SHEETS = {
    "cascade/grid_held_out.png": "cascade-held-out.png",
    "dalle/grid_held_out.png": "dalle-held-out.png",
    "dalle/grid_candidates.png": "dalle-candidates.png",
}
QUIET = ("no-first-run", "disable-background-networking", "disable-component-update")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the docs.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--pipeline", default="quickstart", help="name of the pipeline's run")
    arguments = parser.parse_args()
    runs: Path = arguments.runs.resolve()
    root = runs / arguments.pipeline
    browser = find_browser()
    needed = [
        root / "index.html",
        root / "base" / "tracking.json",
        *(root / name for name in SHEETS),
    ]
    missing = [path for path in needed if not path.is_file()]
    if missing:
        sys.exit(f"error: {missing[0]}: no such file; run `make quickstart` to its end first")
    IMAGES.mkdir(exist_ok=True)
    for name, target in SHEETS.items():
        keep(Image.open(root / name), target)
    page = (root / "index.html").as_uri()
    keep(photograph(browser, page, width=1200, height=1500), "quickstart-page.png")
    with dashboard(runs) as address:
        for target, route in dashboard_pages(address, root):
            shot = photograph(browser, f"{address}/#/{route}", width=1400, height=900)
            keep(shot, target)


def find_browser() -> str:
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    sys.exit(
        f"error: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)"
    )


def photograph(browser: str, url: str, *, width: int, height: int) -> Image.Image:
    """What a window of this size shows of a page, once it has had time to draw itself."""
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "picture.png"
        command = [browser, "--headless", "--disable-gpu", "--disable-sync", "--hide-scrollbars"]
        command += [f"--{flag}" for flag in QUIET]
        if os.geteuid() == 0:
            command.append("--no-sandbox")
        command += [f"--user-data-dir={scratch}/profile", f"--window-size={width},{height}"]
        command += ["--virtual-time-budget=20000", f"--screenshot={picture}", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if not picture.is_file():
            sys.exit(f"error: {browser} made no picture of {url}:\n{done.stderr[-2000:]}")
        with Image.open(picture) as image:
            return image.convert("RGB")


@contextmanager
def dashboard(runs: Path) -> Iterator[str]:
    """`mezzotint dashboard` on a free port, as long as the body runs; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "launch.cli", "dashboard"]
    command += ["--runs", str(runs), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            if not answers(f"{address}/health", server):
                log.seek(0)
                sys.exit(f"error: the dashboard does not start:\n{log.read().decode()[-2000:]}")
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def answers(url: str, server: subprocess.Popen[bytes], seconds: float = 120.0) -> bool:
    """Whether the server answers before it ends or the time is up."""
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    return False


def dashboard_pages(address: str, root: Path) -> list[tuple[str, str]]:
    """Files and routes: the table of runs, and the curves of the base decoder."""
    url = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={root.name}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        experiment = json.load(answer)["experiment"]["experiment_id"]
    run = json.loads((root / "base" / "tracking.json").read_text(encoding="utf-8"))["run_id"]
    return [
        ("quickstart-dashboard.png", f"experiments/{experiment}/runs"),
        ("quickstart-metrics.png", f"experiments/{experiment}/runs/{run}/model-metrics"),
    ]


def keep(picture: Image.Image, name: str) -> None:
    """Write a picture to docs/images/, with fewer colours and then fewer pixels if it is large."""
    picture = picture.convert("RGB")
    content = png(picture)
    scale = 1.0
    while len(content) > LARGEST:
        size = (round(picture.width * scale), round(picture.height * scale))
        content = png(picture.resize(size, Image.Resampling.LANCZOS).quantize(256))
        scale *= 0.85
    (IMAGES / name).write_bytes(content)
    print(f"{IMAGES / name}: {len(content) / 1000:.0f} kB")


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
