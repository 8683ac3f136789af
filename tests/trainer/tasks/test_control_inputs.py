"""What a control is trained with must be what its base was trained with."""

from types import SimpleNamespace

import pytest
import torch

from mezzotint.common.errors import UserError
from mezzotint.common.hint import HintRecord
from mezzotint.common.latent_scaling import LatentScaling
from models import store
from models.diffusion.control.network import ControlConfig
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage
from trainer.tasks.control import ControlTaskConfig
from trainer.tasks.control_inputs import check_base, hint_record, of_base

UNET = UNetConfig(
    image_size=8, channels=8, multipliers=(1, 2), depth=1, attention=(), head_width=8, groups=4
)
CONTROL = ControlConfig(base=UNET, hint={"channels": 1, "stride": 2})


def stage(digest, std=2.0):
    scaling = LatentScaling(mean=0.0, std=std, samples=5)
    return FirstStage(model="runs/kl", digest=digest * 64, scaling=scaling)


def task(tmp_path, **records):
    """A control's task whose base is on disk."""
    torch.manual_seed(0)
    store.save(str(tmp_path / "model"), UNET, UNET.build().state_dict(), card="", **records)
    return ControlTaskConfig(kind="control", base=str(tmp_path))


def holder(channels=1, size=16):
    record = HintRecord(name="edges", channels=channels)
    return SimpleNamespace(hint=SimpleNamespace(record=record, size=size))


def test_latents_are_scaled_as_the_base_was_trained(tmp_path):
    settings = task(tmp_path, first_stage=stage("a", std=3.0))
    assert of_base(settings, stage("a")).scaling.std == 3.0


def test_latents_of_another_first_stage_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"trained on those of runs/kl"):
        of_base(task(tmp_path, first_stage=stage("b")), stage("a"))
    with pytest.raises(UserError, match="trained on images"):
        of_base(task(tmp_path), stage("a"))


def test_a_base_of_other_settings_or_captions_is_refused(tmp_path):
    base = store.describe(f"{task(tmp_path).base}/model")
    check_base(CONTROL, base, None, None)
    wide = UNET.model_copy(update={"channels": 16})
    with pytest.raises(UserError, match=r"channels differ; copy `model`"):
        check_base(ControlConfig(base=wide), base, None, None)
    other = base.model_copy(update={"tokenizer_sha256": "0" * 64})
    with pytest.raises(UserError, match=r"data\.text\.tokenizer"):
        check_base(CONTROL, other, SimpleNamespace(model_bytes=b"own"), None)


def test_hints_that_the_model_does_not_read_are_refused():
    assert hint_record(CONTROL, holder()).name == "edges"
    with pytest.raises(UserError, match=r"data\.hint is not set"):
        hint_record(CONTROL, SimpleNamespace(hint=None))
    with pytest.raises(UserError, match=r"channels is 3"):
        hint_record(CONTROL, holder(channels=3))
    with pytest.raises(UserError, match=r"32 pixels.*reads 16"):
        hint_record(CONTROL, holder(size=32))
