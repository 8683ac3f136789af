"""The control task: start, frozen base, gradients, dropped captions, previews and convergence."""

import pytest
import torch
from bare import Bare
from pydantic import TypeAdapter

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models import store
from models.config import ModelConfig
from models.nn.initialization import materialize
from trainer.task import Step
from trainer.tasks.base_model import LazyBase
from trainer.tasks.control import ControlTaskConfig, with_caption_drop
from trainer.tasks.convergence import Convergence, closer_to
from trainer.tasks.denoising import DenoisingConfig

COUNT, SIZE = 4, 8
TEXT = {"vocab": 20, "length": 5, "width": 8, "layers": 1, "heads": 1}
UNET = {
    **{"kind": "unet", "image_size": SIZE, "channels": 8, "multipliers": (1, 2), "depth": 1},
    **{"attention": (4,), "head_width": 8, "groups": 4, "text": TEXT},
}
DIT = {
    **{"kind": "dit", "image_size": SIZE, "width": 16, "layers": 2, "heads": 2, "classes": 3},
}
BY_TEXT = {"condition": {"kind": "text"}}
BY_CLASS = {"condition": {"kind": "class", "drop": 0.1}}
BASES = {
    "x0": ({**UNET, "process": {"prediction_type": "x0"}}, BY_TEXT),
    "noise": ({**UNET, "process": {"prediction_type": "noise"}}, BY_TEXT),
    "v": ({**UNET, "process": {"prediction_type": "v"}}, BY_TEXT),
    "dit": (DIT, BY_CLASS),
    "latents": (
        {**UNET, "image_channels": 4},
        {**BY_TEXT, "target": {"kind": "array", "name": "latents"}},
    ),
}


def parsed(settings):
    return TypeAdapter(ModelConfig).validate_python(settings)


@pytest.fixture(params=BASES)
def case(request, tmp_path):
    """A base on disk, and the settings of a control for it."""
    settings, condition = BASES[request.param]
    return save_base(tmp_path / "base", settings), settings, condition


def save_base(directory, settings):
    torch.manual_seed(0)
    network = parsed(settings).build()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    store.save(str(directory), network.config, network.state_dict(), card="")
    return str(directory)


def build(base, settings, condition, **options):
    """The task and its control, which starts as an engine starts it."""
    with torch.device("meta"):
        control = parsed({"kind": "control", "base": settings, "hint": {"channels": 1}}).build()
    tree = {"kind": "control", "base": base, "preview": {"steps": 2}, **condition, **options}
    task = ControlTaskConfig.model_validate(tree).build(control)
    for _ in materialize(control, 0, "model", device=torch.device("cpu")):
        pass
    return task, control


def batch():
    rng = torch.Generator().manual_seed(1)
    return Batch(
        keys=("",) * COUNT,
        captions=("",) * COUNT,
        image=torch.rand(COUNT, 3, SIZE, SIZE, generator=rng) * 2 - 1,
        text=torch.randint(1, 20, (COUNT, 5), generator=rng),
        label=torch.arange(COUNT) % 3,
        arrays={"latents": torch.randn(COUNT, 4, SIZE, SIZE, generator=rng)},
        hint=torch.rand(COUNT, 1, SIZE, SIZE, generator=rng),
    )


def one_loss(task, control, seed=0):
    step = Step(0, torch.Generator().manual_seed(seed))
    (loss,) = task.losses({"model": Bare(control)}, batch(), step)
    return loss


def test_a_control_starts_as_its_base_and_at_its_loss(case):
    base, settings, condition = case
    task, control = build(base, settings, condition)
    network = store.load(base)
    weights, own = network.state_dict(), control.state_dict()
    assert all(torch.equal(own[name], weights[there]) for name, there in control.copied())
    tree = {"kind": "denoising", **condition}
    if "text" in settings:
        tree["condition"] = {"kind": "text", "drop": 0.5}
    plain = DenoisingConfig.model_validate(tree).build(network)
    assert torch.equal(one_loss(task, control).value, one_loss(plain, network).value)


def test_training_moves_the_control_alone_and_the_base_keeps_its_digest(case):
    base, settings, condition = case
    digest = store.describe(base).digest
    task, control = build(base, settings, condition)
    before = {name: value.clone() for name, value in control.state_dict().items()}
    frozen = task.base(next(control.parameters()))
    weights = {name: value.clone() for name, value in frozen.state_dict().items()}
    optimizer = torch.optim.Adam(control.parameters(), 1e-2)
    for step in range(3):
        optimizer.zero_grad()
        one_loss(task, control, step).value.backward()
        optimizer.step()
    moved = {
        name for name, value in control.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == set(before)
    assert not any(weight.requires_grad for weight in frozen.parameters())
    store.save(base, frozen.config, frozen.state_dict(), card="")
    assert store.describe(base).digest == digest
    assert all(torch.equal(value, weights[name]) for name, value in frozen.state_dict().items())


def test_under_autocast_the_base_is_cast_once_and_computes_the_same(case):
    base, settings, condition = case
    task, control = build(base, settings, condition)
    with torch.no_grad():
        for weight in control.parameters():  # so that the control acts
            weight.add_(
                torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 0.05
            )
    plain = one_loss(task, control).value
    with torch.autocast("cpu", torch.bfloat16):
        found = one_loss(task, control).value
        network = task.base(next(control.parameters()))
        assert task.base(next(control.parameters())) is network
        types = {
            each.weight.dtype for each in network.modules() if isinstance(each, torch.nn.Conv2d)
        }
        assert types <= {torch.bfloat16}
        task.base = Uncast(base)
        assert torch.equal(found, one_loss(task, control).value)
    assert not torch.equal(found, plain)
    again, _ = build(base, settings, condition)
    assert torch.equal(one_loss(again, control).value, plain)


class Uncast(LazyBase):
    """A base whose weights autocast casts."""

    def __call__(self, like):
        return self._loaded()


def test_a_base_outside_of_autocast_has_its_own_weights_again(case):
    base = LazyBase(case[0])
    like = torch.zeros(1)
    stored = store.load(case[0]).state_dict()
    for enabled in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            weights = base(like).state_dict()
        same = all(torch.equal(weights[name], value) for name, value in stored.items())
        assert same is not enabled


def test_previews_show_hint_real_and_both_samples(case):
    task, control = build(*case)
    images = task.preview({"model": control}, batch(), torch.Generator().manual_seed(0))
    if "target" in case[2]:
        assert images == {}
        return
    assert list(images) == ["hint", "real", "controlled", "base"]
    assert torch.equal(images["controlled"], images["base"])
    assert {tuple(each.shape) for each in images.values()} == {(COUNT, 3, SIZE, SIZE)}


def test_fidelity_is_measured_at_its_steps_and_the_first_jump_is_a_tag(tmp_path):
    settings, condition = BASES["x0"]
    base = save_base(tmp_path / "base", settings)
    options = {"fidelity": {"every": 2, "samples": 2, "gain": 0.5}}
    task, control = build(base, settings, condition, **options)
    scores = iter([0.2, 0.25, 0.7])
    task.watch(lambda count: batch(), lambda hints, images: next(scores))
    assert [step for step in range(1, 5) if task.measures(step)] == [2, 4]
    parts, device = {"model": control}, torch.device("cpu")
    first = task.measure(parts, 2, device)
    assert first == {"control/fidelity": 0.25, "control/fidelity_base": 0.2}
    assert task.tags() == {}
    assert task.measure(parts, 4, device)["control/converged_at"] == 4
    assert task.tags() == {"mezzotint.control_converged_at": "4"}
    again, _ = build(base, settings, condition, **options)
    again.restore(task.state())
    assert again.tags() == task.tags()


def test_without_a_detector_samples_are_compared_with_real_images(tmp_path):
    settings, condition = BASES["x0"]
    task, control = build(save_base(tmp_path / "base", settings), settings, condition)
    task.watch(lambda count: batch(), None)
    found = task.measure({"model": control}, 500, torch.device("cpu"))
    assert found["control/fidelity"] == found["control/fidelity_base"]
    image = torch.ones(1, 3, 2, 2)
    assert (closer_to(image, image), closer_to(image, -image)) == (1.0, 0.0)


def test_convergence_is_noted_once():
    found = Convergence()
    found.base = 0.5
    for step, value in ((1, 0.6), (2, 0.7), (3, 0.9)):
        found.add(step, value, 0.3)
    assert found.step == 2


def test_half_of_the_captions_are_dropped_by_default():
    config = ControlTaskConfig.model_validate({"kind": "control", "base": "b", **BY_TEXT})
    assert with_caption_drop(config.condition, config.caption_drop).drop == 0.5


def test_what_cannot_be_trained_is_refused(tmp_path):
    settings, condition = BASES["x0"]
    with pytest.raises(UserError, match=r"task\.base: .*nowhere"):
        build(str(tmp_path / "nowhere"), settings, condition)
    with pytest.raises(UserError, match="kind control"):
        ControlTaskConfig.model_validate({"kind": "control", "base": "b"}).build(
            parsed(UNET).build()
        )
    base = save_base(tmp_path / "base", settings)
    task, control = build(base, settings, condition)
    step = Step(0, torch.Generator().manual_seed(0))
    losses = task.losses({"model": Bare(control)}, Batch(keys=("",), captions=("",)), step)
    with pytest.raises(UserError, match=r"data\.hint"):
        next(losses)
