"""The Python interface: its examples run, and importing it is cheap."""

import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch
from tiny_run import CAPTIONS, write_run
from unclip_home import write_system

import mezzotint
from mezzotint.common.errors import UserError
from mezzotint.inference.unclip.edits import EditSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working directory with runs of two pipelines, `data` and `recipes`."""
    root = tmp_path_factory.mktemp("home")
    write_run(root / "runs" / "quickstart")
    copytree(root / "runs" / "quickstart" / "classes", root / "runs" / "diffusion" / "class")
    (root / "runs" / "unclip").mkdir()
    write_system(root / "runs" / "unclip")
    for name in ("data", "recipes"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.mark.processes
def test_the_examples_of_the_page_run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    page = (ROOT / "docs" / "python_api.md").read_text("utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 10
    namespace = {}
    for example in examples:
        exec(compile(example, "docs/python_api.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "torch.Size([2, 2, 16, 16, 3]) torch.uint8" in printed
    assert "runs/emoji_dvae/model" in printed
    assert (home / "pilot.png").is_file()
    assert (home / "runs" / "evaluated" / "evaluation.json").is_file()


def test_importing_the_package_imports_no_torch_and_takes_no_time():
    code = (
        "import sys, time; start = time.perf_counter(); import mezzotint; "
        "seconds = time.perf_counter() - start; assert 'torch' not in sys.modules; "
        "assert 'load' in dir(mezzotint) or mezzotint.__all__; print(seconds)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert float(done.stdout) < 0.05


def test_unknown_names_are_no_attributes():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = mezzotint.nothing
    assert all(callable(getattr(mezzotint, name)) for name in mezzotint.__all__)


def test_a_system_generates_reconstructs_and_says_its_size(home):
    run = home / "runs" / "quickstart"
    system = mezzotint.load(run, system="dalle", device="cpu", precision="fp32")
    assert system.image_size == 16
    few, more = (system.generate(CAPTIONS, number=n, candidates=6, seed=2) for n in (1, 3))
    assert few.images.shape == (2, 1, 16, 16, 3)
    assert torch.equal(few.images, more.images[:, :1])
    assert torch.equal(more.scores, more.scores.sort(dim=1, descending=True).values)
    once = system.reconstruct(few.images[:, 0])
    assert once.shape == few.images[:, 0].shape
    cascade = mezzotint.load(run, device="cpu")
    assert torch.equal(cascade.reconstruct(once), once)


def test_a_decoder_edits_images(home):
    system = mezzotint.load(home / "runs" / "unclip" / "decoder", device="cpu", precision="fp32")
    images = torch.arange(8 * 8 * 3).view(1, 8, 8, 3).to(torch.uint8)
    few = EditSettings(steps=2)
    varied = system.variations(images, etas=(0.0, 1.0), number=2, settings=few)
    assert varied.images.shape == (1, 2, 2, 8, 8, 3)
    turned = system.text_diff(images, "man cook", "woman cook", thetas=(0.0,), settings=few)
    assert torch.equal(turned.images[:, 0], varied.images[:, 0, 0])
    assert torch.equal(turned.images[:, 0], turned.latents.reconstruction)
    both = system.interpolate(torch.cat([images, images]), fractions=(0.5,), settings=few)
    assert both.images.shape == (1, 8, 8, 3)
    with pytest.raises(UserError, match="has no prior"):
        system.generate(["man cook"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: mezzotint.load(run, system="none"), "--system none"),
        (lambda run: mezzotint.load(run / "none"), "no such directory"),
        (lambda run: mezzotint.load(run).generate("a caption"), "give a list of captions"),
        (lambda run: mezzotint.load(run).generate(), "a cascade generates from captions"),
        (lambda run: mezzotint.load(run / "classes").generate(labels=[3]), "there is no class 3"),
        (lambda run: mezzotint.load(run).variations(torch.zeros(1)), "no decoder of image embeddi"),
        (lambda run: mezzotint.open_dataset(run), "manifest"),
        (lambda run: mezzotint.open_dataset("data/emoji", split="x", part="y"), "part"),
        (lambda run: mezzotint.train("recipes/none.yaml"), "none.yaml"),
        (lambda run: mezzotint.evaluate({"kind": "reconstruction"}, run), "evaluation: "),
    ],
)
def test_what_a_user_can_correct_is_one_error(home, call, message):
    with pytest.raises(UserError, match=message):
        call(home / "runs" / "quickstart")


def test_imagic_needs_a_diffusion_model_of_captions(home):
    system = mezzotint.load(home / "runs" / "quickstart", system="dalle", device="cpu")
    image = torch.zeros(16, 16, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match="a dalle has no diffusion model of captions"):
        system.imagic(image, "man cook")
    with pytest.raises(UserError, match=r"image: has shape \(8, 16, 3\)"):
        system.imagic(image[:8], "man cook")
