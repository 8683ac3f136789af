"""Control branches: published size, the unchanged start, the order of gradients, bad hints."""

import pytest
import torch
from pydantic import ValidationError

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.hint_encoder import HintEncoderConfig
from models.diffusion.control.network import ControlConfig
from models.diffusion.dit import DiTConfig
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
TINY_UNET = {
    "image_size": 8,
    "image_channels": 2,
    "channels": 8,
    "multipliers": (1, 2),
    "depth": 1,
    "attention": (4,),
    "head_width": 8,
    "groups": 4,
}
BASES = {
    "text": UNetConfig(
        **TINY_UNET, text={"vocab": 9, "length": 3, "width": 8, "layers": 1, "heads": 1}
    ),
    "features": UNetConfig(
        **TINY_UNET,
        features={"width": 6},
        transformer={"depth": 1},
        modulation="add",
        resampling="convolution",
        classes=3,
    ),
    "upsampler": UNetConfig(**TINY_UNET, low_resolution={"size": 4}),
    "dit": DiTConfig(image_size=8, image_channels=2, width=16, layers=4, heads=2, classes=3),
}
HINT = HintEncoderConfig(channels=1, stride=2)
TIMES = torch.tensor([0.2, 0.7])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = noise(2, 2, 8, 8)
CONDITION = Condition(
    text=torch.tensor([[1, 2, 0], [3, 4, 5]]),
    label=torch.tensor([0, 2]),
    low_res=noise(2, 2, 4, 4, seed=1),
    features=noise(2, 3, 6, seed=2),
    hints=(noise(2, 1, 16, 16, seed=3).sigmoid(),),
)


def trained(config):
    """A frozen base none of whose outputs is 0."""
    base = config.build().eval().requires_grad_(requires_grad=False)
    for place, weight in enumerate(base.parameters()):
        weight.add_(noise(*weight.shape, seed=place) * 0.2)
    return base


def new(config, base):
    """A control that starts as training starts it."""
    control = config.build()
    own, weights = control.state_dict(), base.state_dict()
    own.update({name: weights[there] for name, there in control.copied()})
    control.load_state_dict(own)
    return control


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


@pytest.mark.parametrize("name", BASES)
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
