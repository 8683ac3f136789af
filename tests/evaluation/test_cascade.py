"""The report of a cascade: generated inputs of its stages against degraded real ones."""

import pytest
import torch
from pydantic import TypeAdapter
from saved_network import saved
from unclip_home import write_system

from data_pipeline.text.tokenizer import Tokenizer
from evaluation.cascade import CHART, GRID, StageInputs, statistics
from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluate
from evaluation.result import EvaluationResult
from launch.evaluate import image_count
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import Preprocessing
from models.diffusion.degradation import BlurAugmentation
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8


def test_a_shift_of_colour_is_found_exactly():
    shifted = IMAGES + torch.tensor([0.04, 0.0, -0.02])[:, None, None]
    found = statistics([StageInputs("upsampler", shifted, IMAGES)], seed=0)
    values = {name: groups["upsampler"].value for name, groups in found.items()}
    assert values["red_shift"] == pytest.approx(0.04 * 127.5, abs=1e-4)
    assert values["green_shift"] == pytest.approx(0, abs=1e-4)
    assert values["blue_shift"] == pytest.approx(-0.02 * 127.5, abs=1e-4)
    assert values["brightness_shift"] == pytest.approx(0.02 / 3 * 127.5, abs=1e-4)
    assert values["high_frequencies_db"] == pytest.approx(0, abs=1e-4)
    assert found["red_shift"]["upsampler"].n == 6


def test_too_smooth_and_too_sharp_images_are_told_apart():
    rng = torch.Generator().manual_seed(0)
    smooth = BlurAugmentation()(IMAGES, torch.ones(6), rng)
    sharp = IMAGES + (IMAGES - smooth)
    (one, other) = (
        statistics([StageInputs("upsampler", images, IMAGES)], seed=0)["high_frequencies_db"]
        for images in (smooth, sharp)
    )
    assert one["upsampler"].high < -1
    assert other["upsampler"].low > 1


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base of 8 pixels, and super-resolution to 16 and 32."""
    root = tmp_path_factory.mktemp("cascade")
    captions = [f"{one} {other}" for one in ("red", "green") for other in ("hand", "cook")]
    pieces = Tokenizer.train([f"{each} {n}" for each in captions for n in range(20)], 40)
    base = TextDiffusionConfig(
        image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=40, text_length=6
    )
    saved(
        root / "base", base,
        tokenizer=pieces, text_length=6, preprocessing=Preprocessing(size=8),
    )  # fmt: skip
    first = SuperResolutionConfig(low_size=8, image_size=16, channels=(8,), blocks=1)
    second = SuperResolutionConfig(
        low_size=16, image_size=32, channels=(8,), blocks=1, augmentation=BlurAugmentation()
    )
    saved(root / "first", first, preprocessing=Preprocessing(size=16))
    saved(root / "second", second, preprocessing=Preprocessing(size=32))
    return root


def config(home=None, **changes):
    tree = {
        "kind": "cascade",
        "name": "stages",
        "system": {
            "kind": "cascade",
            "base": f"{home}/base",
            "upsamplers": [f"{home}/first", f"{home}/second"],
            "base_sampling": {"steps": 2},
            "upsampler_sampling": [{"steps": 2, "level": 0.1}, {"steps": 2}],
        },
        "reference": {"url": "data/emoji"},
        "limit": 4,
    }
    return TypeAdapter(EvaluationConfig).validate_python(tree | changes)


def test_the_inputs_of_every_stage_are_compared(home, tmp_path):
    wanted = config(home)
    evaluate(wanted, tmp_path)
    result = EvaluationResult.read(tmp_path / "evaluation.json")
    assert set(result.metrics["brightness_shift"]) == {"upsamplers.0", "upsamplers.1"}
    assert result.metrics["high_frequencies_db"]["upsamplers.1"].n == 4
    assert result.protocol["reference"]["part"] == "train"
    assert result.protocol["system"]["level"] == {"upsamplers.0": 0.1, "upsamplers.1": 0.0}
    assert (tmp_path / GRID).is_file()
    assert (tmp_path / CHART).is_file()
    assert image_count(wanted) == 8


def test_the_inputs_of_an_unclip_system_s_upsampler_are_compared(tmp_path):
    system = write_system(tmp_path / "system")
    evaluate(config(system=system.model_dump(mode="json"), limit=2), tmp_path / "out")
    result = EvaluationResult.read(tmp_path / "out" / "evaluation.json")
    assert set(result.metrics["contrast_shift"]) == {"upsamplers.0"}
    alone = system.model_copy(update={"upsamplers": (), "upsampler_sampling": ()})
    with pytest.raises(UserError, match=r"system\.upsamplers: has none"):
        evaluate(config(system=alone.model_dump(mode="json")), tmp_path / "none")
    assert not (tmp_path / "none").exists()
