"""Control branches: published size, the unchanged start, the order of gradients, bad hints."""

import pytest
import torch
from controls import BASES, CONDITION, HINT, TIMES, X, new, noise, trained
from pydantic import ValidationError

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.network import ControlConfig
from models.diffusion.unet.network import UNetConfig

SD1 = UNetConfig(
    image_size=64,
    image_channels=4,
    channels=320,
    multipliers=(1, 2, 4, 4),
    attention=(64, 32, 16),
    heads=8,
    modulation="add",
    resampling="convolution",
    features={"width": 768},
    transformer={"depth": 1},
)


def counted(module):
    return sum(weight.numel() for weight in module.parameters())


def test_the_control_of_stable_diffusion_has_exactly_its_parameters():
    with torch.device("meta"):
        control = ControlConfig(base=SD1, hint={"stride": 8}).build()
    assert counted(control.encoder) == 348_712_960
    assert counted(control.zero) == 11_479_680
    assert counted(control) == 361_279_120
    layers = [counted(layer) for layer in control.hint.layers]
    assert layers == [448, 2_320, 4_640, 9_248, 27_744, 83_040, 221_440, 737_600]
    assert sum(layers) == 1_086_480


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_control_changes_nothing_bit_for_bit(name, dtype):
    base = trained(BASES[name]).to(dtype)
    control = new(ControlConfig(base=BASES[name], hint=HINT), base).to(dtype)
    controlled = control(X, TIMES, CONDITION, base)
    assert controlled.requires_grad
    assert torch.equal(controlled, base(X, TIMES, CONDITION))


@pytest.mark.parametrize("options", [{"middle_only": True}, {"unlocked": True}])
def test_the_other_forms_change_nothing_either(options):
    base = trained(BASES["text"])
    control = new(ControlConfig(base=BASES["text"], hint=HINT, **options), base)
    assert torch.equal(control(X, TIMES, CONDITION, base), base(X, TIMES, CONDITION))


def moving(control, base):
    """The parameters that have a gradient, after one update."""
    control.zero_grad()
    control(X, TIMES, CONDITION, base).sub(noise(*X.shape, seed=9)).square().sum().backward()
    found = {name for name, weight in control.named_parameters() if weight.grad.any()}
    torch.optim.SGD(control.parameters(), 1e-2).step()
    return found


# attention to one token ignores the query: its gradient is 0 at every step
@pytest.mark.parametrize("name", sorted(BASES.keys() - {"class token"}))
def test_gradients_arrive_at_zero_layers_then_the_copy_then_the_hint_encoder(name):
    base = trained(BASES[name])
    before = {key: value.clone() for key, value in base.state_dict().items()}
    control = new(ControlConfig(base=BASES[name], hint=HINT), base)
    parameters = {key for key, _ in control.named_parameters()}
    last = f"hint.layers.{len(control.hint.layers) - 1}."
    zero = {key for key in parameters if key.startswith("zero.")}
    copy = {key for key in parameters if key.startswith(("encoder.", last))}
    assert moving(control, base) == zero
    assert moving(control, base) == zero | copy
    assert moving(control, base) == parameters
    assert all(weight.grad is None for weight in base.parameters())
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_a_hint_of_another_size_or_channel_count_is_refused():
    base = trained(BASES["text"])
    control = ControlConfig(base=BASES["text"], hint=HINT).build()
    for shape in ((2, 3, 16, 16), (2, 1, 8, 8)):
        condition = Condition(text=CONDITION.text, hints=(torch.zeros(shape),))
        with pytest.raises(UserError, match="takes 1 channels and 16 x 16"):
            control(X, TIMES, condition, base)
    with pytest.raises(UserError, match=r"data\.hint"):
        control(X, TIMES, CONDITION.without_hints, base)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base": BASES["text"], "hint": {"stride": 3}}, "power of 2"),
        ({"base": BASES["text"], "hint": {"stride": 4, "widths": (8, 8)}}, "at least 3"),
        ({"base": BASES["text"], "blocks": 1}, "dit"),
        ({"base": BASES["dit"], "blocks": 9}, "only 4"),
        ({"base": BASES["dit"], "unlocked": True}, "only a unet"),
    ],
)
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        ControlConfig(**options)
