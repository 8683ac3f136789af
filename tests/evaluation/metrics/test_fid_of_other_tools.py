"""FID as pytorch-fid, torch-fidelity and torchmetrics compute it, whose numbers lie in peers/."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch

from evaluation.metrics import fid
from evaluation.metrics.features import FID_OF, Inception
from evaluation.metrics.inception import fid_inception_v3
from mezzotint.inference.images import from_bytes, to_bytes
from mezzotint.inference.runtime import Runtime

PEERS = Path(__file__).with_name("peers")
TOOLS = {
    "torch_bilinear": ("pytorch-fid",),
    "torch_bilinear_antialias": ("torchmetrics",),
    "tf1_bilinear": ("torch-fidelity", "torchmetrics antialias=False"),
}
SIDE, COUNT, KEPT = 64, 6, 12


def formula(shape, index):
    """The formula of peers/make_fid.py."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(numbers * 1.7 + (index + 1) * numbers.sqrt()).float().view(shape)


def weights():
    """Of the same network; torch-fidelity's classifier comes last among the sorted names."""
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in fid_inception_v3().state_dict().items()}
    found = {}
    for index, name in enumerate(sorted(name for name, shape in shapes.items() if shape)):
        shape = shapes[name]
        if len(shape) > 1:
            found[name] = formula(shape, index) * 2.2 / math.sqrt(math.prod(shape[1:]))
        else:
            ones = name.endswith(("running_var", "bn.weight"))
            found[name] = torch.full(shape, 1.0 if ones else 0.0)
    return found


def images():
    """Two sets (COUNT, SIDE, SIDE, 3) uint8, the second brighter."""
    rows = torch.arange(SIDE)[:, None, None]
    columns = torch.arange(SIDE)[None, :, None]
    colours = torch.arange(3)[None, None, :]
    made = []
    for number in range(2 * COUNT):
        stripes = ((rows * (number + 2) + columns * (number + 5)) // 7 + colours * number) % 5
        made.append((stripes * 40 + 60 * (number >= COUNT)).to(torch.uint8))
    return torch.stack(made[:COUNT]), torch.stack(made[COUNT:])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The weight file."""
    target = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(weights(), target)
    return str(target)


@pytest.mark.parametrize("resize", TOOLS)
def test_the_fid_of_a_filter_is_that_of_the_tools_it_names(path, resize):
    published = json.loads((PEERS / "fid.json").read_text(encoding="utf-8"))
    network = Inception(path=path, resize=resize).build(Runtime.of(precision="fp32"))
    first, second = (network(each) for each in images())
    distance = fid.frechet_distance(fid.fit(second), fid.fit(first))
    for tool, numbers in published["tools"].items():
        wanted = torch.tensor(numbers["features"])
        difference = float((first[:, :KEPT] - wanted).abs().max() / wanted.abs().max())
        if tool in TOOLS[resize]:
            assert difference < 2e-4, tool
            assert distance == pytest.approx(numbers["fid"], rel=2e-3), tool
            name = tool.split()[0]
            assert f"{name} {published['versions'][name]}" in network.protocol()["comparable_with"]
        else:
            assert difference > 1e-3, tool
    assert set(FID_OF) == set(TOOLS)


def test_a_filter_of_no_other_tool_says_so(path):
    network = Inception(path=path, resize="pil_bicubic").build(Runtime.of(precision="fp32"))
    assert network.protocol()["comparable_with"] == "no other tool"


def test_the_numbers_are_those_of_the_tools_where_they_are_installed(tmp_path):
    for tool in ("torchmetrics", "torch_fidelity", "pytorch_fid"):
        pytest.importorskip(tool)
    made = runpy.run_path(str(PEERS / "make_fid.py"))
    made["main"](tmp_path / "fid.json")
    kept, found = (
        json.loads(each.read_text()) for each in (PEERS / "fid.json", tmp_path / "fid.json")
    )
    for tool, numbers in kept["tools"].items():
        assert found["tools"][tool]["fid"] == pytest.approx(numbers["fid"], rel=1e-3)


def test_every_level_of_an_image_survives_the_network_range():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    scaled = from_bytes(levels)
    assert torch.equal(to_bytes(scaled), levels)
    truncated = ((scaled + 1) / 2 * 255).byte().movedim(1, -1)
    assert int((truncated != levels)[..., 0].sum()) > 0  # what rounding avoids
    assert torch.equal(to_bytes(scaled + 0.49 / 127.5), levels)
    assert torch.equal(to_bytes(scaled - 0.49 / 127.5), levels)
