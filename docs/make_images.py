"""The images of these pages, from a finished quickstart:  .venv/bin/python docs/make_images.py

Takes screenshots of the result page and of the dashboard, which is started for the purpose, with
headless Chromium, and copies the evaluations' image grids to docs/images/, each file small. With
`--server URL` it takes screenshots of an MLflow server that tracked the same pipeline on a cluster.
"""

import argparse
import base64
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
from typing import Any

from PIL import Image

IMAGES = Path(__file__).parent / "images"
LARGEST = 400_000
"""Bytes of an image."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
GRIDS = {
    "cascade/grid_held_out.png": "cascade-held-out.png",
    "dalle/grid_held_out.png": "dalle-held-out.png",
    "dalle/grid_candidates.png": "dalle-candidates.png",
}
CLOSE_ASSISTANT = '[aria-label*="lose"]'
EXPAND = '[role="grid"] [data-component-id*="runname"]'
SEARCH = 'input[placeholder="Search metric charts"]'
CURVE = ".js-plotly-plot .trace"
QUIET = ("no-first-run", "disable-background-networking", "disable-component-update")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the images of the docs.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--pipeline", default="quickstart", help="name of the pipeline's run")
    parser.add_argument("--server", help="take screenshots of this MLflow server, nothing else")
    arguments = parser.parse_args()
    runs: Path = arguments.runs.resolve()
    root = runs / arguments.pipeline
    browser = find_browser()
    if arguments.server:
        with window(browser, width=1400, height=900) as page:
            show_dashboard(page, arguments.server, root, "cluster")
        with window(browser, width=1300, height=1500) as page:
            show_nodes(page, arguments.server, root)
        return
    needed = [root / name for name in ("index.html", "base/tracking.json", *GRIDS)]
    missing = [path for path in needed if not path.is_file()]
    if missing:
        sys.exit(f"error: {missing[0]}: no such file; run `make quickstart` to its end first")
    IMAGES.mkdir(exist_ok=True)
    for name, target in GRIDS.items():
        save(Image.open(root / name), target)
    with window(browser, width=1200, height=1500) as page:
        page.open((root / "index.html").as_uri(), selector="body")
        save(page.screenshot(), "quickstart-page.png")
    with dashboard(runs) as address, window(browser, width=1400, height=900) as page:
        show_dashboard(page, address, root, "quickstart")


def find_browser() -> str:
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    sys.exit(
        f"error: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)"
    )


class BrowserWindow:
    """A headless browser window, driven over Chromium's debugging pipe (two file descriptors)."""

    def __init__(self, browser: str, profile: str, *, width: int, height: int) -> None:
        command = [browser, "--headless", "--disable-gpu", "--disable-sync", "--hide-scrollbars"]
        command += [f"--{flag}" for flag in QUIET]
        if os.geteuid() == 0:
            command.append("--no-sandbox")
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        commands, self._commands = os.pipe()
        answers, written = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4
        moved = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{written}', "bash", *command]
        self._process = subprocess.Popen(
            [*moved, "--remote-debugging-pipe", "about:blank"],
            pass_fds=(commands, written),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(written)
        self._answers = os.fdopen(answers, "rb")
        self._sent = 0
        self._session = ""
        pages = self.call("Target.getTargets", {})["targetInfos"]
        page = next(each["targetId"] for each in pages if each["type"] == "page")
        attached = self.call("Target.attachToTarget", {"targetId": page, "flatten": True})
        self._session = attached["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", size)

    def call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._sent:
                if "error" in answer:
                    sys.exit(f"error: {method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _read(self) -> bytes:
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                sys.exit("error: the browser has ended early")
            text += byte
        return bytes(text)

    def open(self, url: str, selector: str, seconds: float = 90.0) -> None:
        """Open a page and wait until it shows what the selector names, and a little longer."""
        self.call("Page.navigate", {"url": url})
        deadline = time.monotonic() + seconds
        while not self.run(f"document.querySelector('{selector}') !== null"):
            if time.monotonic() > deadline:
                sys.exit(f"error: {url} shows no {selector} within {seconds:.0f} s")
            time.sleep(0.5)
        time.sleep(3)

    def click(self, selector: str) -> None:
        """Click the first such element, if there is one."""
        self.run(f"document.querySelector('{selector}')?.click()")
        time.sleep(3)

    def type(self, selector: str, text: str) -> None:
        """Put text into the first such field, as typing does."""
        self.run(f"document.querySelector('{selector}').focus()")
        self.call("Input.insertText", {"text": text})
        time.sleep(4)

    def run(self, script: str) -> object:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", {"expression": script, "returnByValue": True})
        return answer["result"].get("value")

    def screenshot(self) -> Image.Image:
        """What the window shows."""
        shot = self.call("Page.captureScreenshot", {"format": "png"})
        return Image.open(io.BytesIO(base64.b64decode(shot["data"])))

    def close(self) -> None:
        """End the browser."""
        self.call("Browser.close", {})
        self._process.wait()


@contextmanager
def window(browser: str, *, width: int, height: int) -> Iterator[BrowserWindow]:
    """A window with a profile of its own, as long as the body runs."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        opened = BrowserWindow(browser, profile, width=width, height=height)
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def dashboard(runs: Path) -> Iterator[str]:
    """`mezzotint dashboard` on a free port, as long as the body runs; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-m", "launch.cli.main", "dashboard"]
    command += ["--runs", str(runs), "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            if not responds(f"{address}/health", server):
                log.seek(0)
                sys.exit(f"error: the dashboard does not start:\n{log.read().decode()[-2000:]}")
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def responds(url: str, server: subprocess.Popen[bytes], seconds: float = 120.0) -> bool:
    """Whether the server answers before it ends or the time is up."""
    deadline = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    return False


def show_dashboard(page: BrowserWindow, address: str, root: Path, prefix: str) -> None:
    """The table of runs, its parent run expanded, and the curves of the base decoder."""
    page.open(f"{experiment_at(address, root)}/runs", selector=EXPAND)
    page.click(CLOSE_ASSISTANT)
    page.click(EXPAND)
    save(page.screenshot(), f"{prefix}-dashboard.png")
    run = run_id(root / "base")
    page.open(f"{experiment_at(address, root)}/runs/{run}/model-metrics", selector=CURVE)
    save(page.screenshot(), f"{prefix}-metrics.png")


def show_nodes(page: BrowserWindow, address: str, root: Path) -> None:
    """The system metrics of every node of the dVAE's job."""
    run = run_id(root / "dvae")
    page.open(f"{experiment_at(address, root)}/runs", selector=EXPAND)
    page.click(CLOSE_ASSISTANT)
    page.open(f"{experiment_at(address, root)}/runs/{run}/system-metrics", selector=CURVE)
    page.type(SEARCH, "cpu_utilization")
    save(page.screenshot(), "cluster-nodes.png")


def experiment_at(address: str, root: Path) -> str:
    """The page of a pipeline's experiment."""
    url = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={root.name}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        experiment = json.load(answer)["experiment"]["experiment_id"]
    return f"{address}/#/experiments/{experiment}"


def run_id(directory: Path) -> str:
    """The run in MLflow that a stage's directory belongs to."""
    tree = json.loads((directory / "tracking.json").read_text(encoding="utf-8"))
    return str(tree["run_id"])


def save(image: Image.Image, name: str) -> None:
    """Write an image to docs/images/, with fewer colours and then fewer pixels if it is large."""
    image = image.convert("RGB")
    content = png(image)
    scale = 1.0
    while len(content) > LARGEST:
        size = (round(image.width * scale), round(image.height * scale))
        content = png(image.resize(size, Image.Resampling.LANCZOS).quantize(256))
        scale *= 0.85
    (IMAGES / name).write_bytes(content)
    print(f"{IMAGES / name}: {len(content) / 1000:.0f} kB")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
