"""The evaluation of a control: the same captions and seeds with it, without it and at scale 0."""

import pytest
import torch
from pydantic import TypeAdapter
from saved_network import saved

from data_pipeline.hints.config import Edges
from data_pipeline.text.tokenizer import Tokenizer
from evaluation.config import EvaluationConfig
from evaluation.control import ratio_of_means
from evaluation.evaluate import evaluate
from evaluation.result import EvaluationResult
from launch.evaluate import image_count
from launch.report.control import control_result
from launch.report.evaluations import read
from mezzotint.common.errors import UserError
from mezzotint.common.hint import HintRecord
from mezzotint.common.preprocessing import Preprocessing
from models import store
from models.base_record import BaseRecord
from models.diffusion.control.network import ControlConfig
from models.diffusion.unet.network import UNetConfig

UNET = UNetConfig(
    image_size=8, channels=8, multipliers=(1, 2), depth=1, attention=(), head_width=8, groups=4,
    text={"vocab": 40, "length": 6, "width": 8, "layers": 1, "heads": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base of captions, and a control of it, on edges of 8 pixels."""
    root = tmp_path_factory.mktemp("control")
    captions = [f"{one} {other}" for one in ("red", "green") for other in ("hand", "cook")]
    pieces = Tokenizer.train([f"{each} {n}" for each in captions for n in range(20)], 40)
    records = {"tokenizer": pieces, "text_length": 6, "preprocessing": Preprocessing(size=8)}
    base = saved(root / "base", UNET, **records)
    saved(
        root / "control",
        ControlConfig(base=UNET, hint={"channels": 1}),
        base=BaseRecord(model=base, digest=store.describe(base).digest),
        hint=HintRecord(name="edges", channels=1, detector=Edges().record),
    )
    return root


def config(home, *controls, limit=4, **settings):
    system = {"kind": "diffusion", "model": str(home / "base"), "sampling": {"steps": 2}}
    tree = {
        "kind": "control",
        "name": "edges",
        "system": system | {"controls": [{"model": str(home / each)} for each in controls]},
        "reference": {"url": "data/emoji"},
        "limit": limit,
        **settings,
    }
    return TypeAdapter(EvaluationConfig).validate_python(tree)


def test_samples_with_and_without_a_control_are_compared_with_its_hints(home, tmp_path):
    wanted = config(home, "control")
    evaluate(wanted, tmp_path)
    result = EvaluationResult.read(tmp_path / "evaluation.json")
    assert set(result.metrics["edge_F1"]) == {"controlled", "uncontrolled"}
    assert result.metrics["edge_F1"]["controlled"].n == 4
    strict = result.metrics["edge_F1_same_pixel"]["controlled"].value
    assert strict <= result.metrics["edge_F1"]["controlled"].value
    assert result.metrics["changed_at_scale_0"] == {"of 4": 0.0}
    assert result.metrics["edge_F1_ratio"]["controlled to uncontrolled"].n == 4
    assert result.protocol["detector"]["settings"]["low"] == 100
    assert result.protocol["edge_tolerance"].startswith("1 pixels")
    assert result.protocol["reference"]["images"] == 4
    assert image_count(wanted) == 8
    shown = control_result(read("edges", tmp_path))
    assert [label for label, _ in shown.rows] == [
        "controlled", "uncontrolled", "controlled to uncontrolled",
    ]  # fmt: skip
    assert shown.changed == "0 of 4"
    assert shown.grid is not None


def test_an_image_counts_once_whatever_the_number_of_its_samples(home, tmp_path):
    wanted = config(home, "control", samples_per_image=2, empty_captions=True)
    evaluate(wanted, tmp_path)
    result = EvaluationResult.read(tmp_path / "evaluation.json")
    assert result.metrics["edge_F1"]["controlled"].n == 4
    assert result.metrics["changed_at_scale_0"] == {"of 8": 0.0}
    assert result.protocol["captions"] == "empty"
    assert image_count(wanted) == 16


@pytest.mark.parametrize("controls", [(), ("control", "control")])
def test_it_is_of_one_control(home, tmp_path, controls):
    with pytest.raises(UserError, match=r"this evaluation is of one control"):
        evaluate(config(home, *controls), tmp_path)


def test_a_control_of_a_users_own_hints_is_refused(home, tmp_path):
    base = str(home / "base")
    record = BaseRecord(model=base, digest=store.describe(base).digest)
    control = ControlConfig(base=UNET, hint={"channels": 1})
    saved(home / "own", control, base=record, hint=HintRecord(name="depth", channels=1))
    with pytest.raises(UserError, match=r"records no detector, so its samples cannot be compared"):
        evaluate(config(home, "own"), tmp_path)


def test_the_ratio_is_of_means_and_its_interval_contains_it():
    one, other = torch.tensor([0.8, 0.6, 1.0]).double(), torch.tensor([0.2, 0.4, 0.0]).double()
    found = ratio_of_means(one, other, torch.Generator().manual_seed(0))
    assert found.value == pytest.approx(4)
    assert found.low < 4 < found.high
