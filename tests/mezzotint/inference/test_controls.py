"""Systems with controls: the base at scale 0, hints of every prompt, another base, transfer."""

import pytest
import torch

from launch.weights.transfer import transfer_control
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.inference.config import SystemConfig
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.load import load_generator, with_config
from mezzotint.inference.model_lookup import SYSTEM, find_system
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.base_record import BaseRecord
from models.diffusion.control.network import ControlConfig
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage

UNET = UNetConfig(
    image_size=8, channels=8, multipliers=(1, 2), depth=1, attention=(), head_width=8, groups=4,
    classes=3, null_class=True,
)  # fmt: skip
PROMPTS = (Prompt(label=0), Prompt(label=2))


def saved(directory, config, seed=0, start=None, **records):
    """A network with random weights, or `start` and a little more, on disk."""
    torch.manual_seed(seed)
    network = config.build()
    with torch.no_grad():
        if start is not None:
            network.load_state_dict(start)
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    store.save(str(directory), config, network.state_dict(), card="", **records)
    return str(directory)


def control_of(directory, base, seed=1):
    config = ControlConfig(base=store.describe(base).config, hint={"channels": 1})
    weights, fresh = store.load(base).state_dict(), config.build()
    own = fresh.state_dict()
    own.update({name: weights[there] for name, there in fresh.copied()})
    record = BaseRecord(model=base, digest=store.describe(base).digest)
    return saved(directory, config, seed, own, base=record)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("base"), UNET)


@pytest.fixture(scope="module")
def control(tmp_path_factory, base):
    return control_of(tmp_path_factory.mktemp("control"), base)


def hints(count=1, channels=1, size=8):
    rng = torch.Generator().manual_seed(5)
    return torch.rand(count, channels, size, size, generator=rng)


def system(base, *controls, **settings) -> SystemConfig:
    sampling = {"steps": 3, "guidance": settings.pop("guidance", 2.0)}
    tree = {"kind": "diffusion", "model": base, "controls": controls, "sampling": sampling}
    return SYSTEM.validate_python(tree | settings)


def generate(config, *given, prompts=PROMPTS):
    request = GenerationRequest(prompts, hints=given, number=2)
    return load_generator(config, precision="fp32").generate(request).images


def test_a_control_of_scale_0_and_one_outside_its_interval_are_the_base(base, control):
    plain = generate(system(base))
    for setting in ({"scale": 0.0}, {"interval": (0.0, 0.0)}):
        assert torch.equal(generate(system(base, {"model": control, **setting}), hints()[0]), plain)
    acting = generate(system(base, {"model": control}), hints()[0])
    assert not torch.equal(acting, plain)


def test_every_prompt_can_have_a_hint_of_its_own(base, control):
    config, two = system(base, {"model": control}), hints(2)
    both = generate(config, two)
    for number in range(2):
        alone = generate(config, two[number], prompts=PROMPTS[number : number + 1])
        assert (both[number].int() - alone[0].int()).abs().max() <= 1


def test_guess_mode_and_conditional_only_change_the_unconditional_half(base, control):
    settings = ({}, {"conditional_only": True}, {"guess": "power"}, {"guess": "logspace"})
    images = [generate(system(base, {"model": control, **each}), hints()[0]) for each in settings]
    assert len({each.numpy().tobytes() for each in images}) == len(settings)
    alone = [
        generate(system(base, {"model": control, **each}, guidance=1.0), hints()[0])
        for each in settings[:2]
    ]
    assert torch.equal(*alone)


def test_two_controls_of_half_the_scale_are_one(base, control):
    half = {"model": control, "scale": 0.5}
    pair = generate(system(base, half, half), hints()[0], hints()[0])
    one = generate(system(base, {"model": control}), hints()[0])
    assert (pair.int() - one.int()).abs().max() <= 1


def test_a_control_by_itself_finds_its_base_by_the_record(base, control):
    found = find_system(control)
    assert (found.kind, found.model) == ("diffusion", base)
    assert [each.model for each in found.controls] == [control]
    generator = load_generator(found, precision="fp32")
    changed = with_config(generator, system(base, {"model": control, "scale": 0.0}))
    request = GenerationRequest(PROMPTS, hints=(hints()[0],))
    assert not torch.equal(generator.generate(request).images, changed.generate(request).images)
    assert generator.protocol()["controls"][0]["scale"] == 1.0
    assert "control 0" in generator.protocol()["digests"]


def test_a_control_of_latents_finds_its_first_stage_too(tmp_path):
    pyramid = {"kind": "resnet", "width": 4, "multipliers": [1, 2], "blocks": 1, "groups": 2}
    tree = {"image_size": 16, "channels": 3, "pyramid": pyramid, "bottleneck": {"kind": "gaussian"}}
    stage = saved(tmp_path / "kl", AutoencoderConfig.model_validate(tree))
    scaling = LatentScaling(mean=0.1, std=1.5, samples=3)
    record = FirstStage(model=stage, digest=store.describe(stage).digest, scaling=scaling)
    base = saved(tmp_path / "base", UNET, first_stage=record)
    found = find_system(control_of(tmp_path / "control", base))
    assert found.kind == "latent"
    assert generate(found, hints()[0]).shape == (2, 2, 16, 16, 3)


def test_a_control_of_another_base_is_refused_with_the_way_out(tmp_path, base, control):
    other = saved(tmp_path / "other", UNET, seed=7)
    with pytest.raises(UserError, match=r"another base.*mezzotint transfer") as refused:
        load_generator(system(other, {"model": control}))
    assert f"--old {base} --new {other}" in str(refused.value)
    with pytest.raises(UserError, match="holds a unet, not a control"):
        load_generator(system(base, {"model": other}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "0 hints for 1 controls"),
        ((hints(channels=3)[0],), "1 channels and 8 x 8"),
        ((hints(size=16)[0],), "1 channels and 8 x 8"),
        ((hints(3),), "1 channels and 8 x 8"),
        ((hints()[0] * 2,), "outside"),
    ],
)
def test_hints_that_do_not_fit_are_refused(base, control, given, said):
    with pytest.raises(UserError, match=said):
        generate(system(base, {"model": control}), *given)


def test_hints_without_a_control_are_refused(base):
    with pytest.raises(UserError, match="1 hints for 0 controls"):
        generate(system(base), hints()[0])


def test_a_control_moves_to_a_fine_tuned_base(tmp_path, base, control):
    tuned = saved(tmp_path / "tuned", UNET, seed=3, start=store.load(base).state_dict())
    done = transfer_control(control, str(tmp_path / "moved"), old=None, new=tuned)
    before, after = store.load(control), store.load(done.model)
    old, new = store.load(base).state_dict(), store.load(tuned).state_dict()
    copied, own = dict(before.copied()), after.state_dict()
    for name, weight in before.state_dict().items():
        change = new[copied[name]] - old[copied[name]] if name in copied else 0
        torch.testing.assert_close(own[name], weight + change)
    assert done.moved == sum(own[name].numel() for name in copied)
    assert done.moved + done.kept == sum(weight.numel() for weight in before.parameters())
    found = find_system(done.model)
    assert found.model == tuned
    assert not torch.equal(generate(found, hints()[0]), generate(system(tuned)))
    back = transfer_control(done.model, str(tmp_path / "back"), old=None, new=base)
    for name, weight in store.load(back.model).state_dict().items():
        torch.testing.assert_close(weight, before.state_dict()[name])


def test_a_control_does_not_move_to_a_network_of_other_settings(tmp_path, base, control):
    wide = saved(tmp_path / "wide", UNET.model_copy(update={"channels": 16}))
    with pytest.raises(UserError, match="other settings"):
        transfer_control(control, str(tmp_path / "out"), old=None, new=wide)
    other = saved(tmp_path / "other", UNET, seed=7)
    with pytest.raises(UserError, match="is not the base"):
        transfer_control(control, str(tmp_path / "out"), old=other, new=base)
    with pytest.raises(UserError, match="not a control"):
        transfer_control(base, str(tmp_path / "out"), old=None, new=other)
