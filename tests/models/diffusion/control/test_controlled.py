"""A base under controls: scales, sums, intervals, guess modes, and guidance without the control."""

import pytest
import torch
from controls import BASES, CONDITION, HINT, TIMES, X, new, noise, trained

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.control.controlled import ControlledNetwork, ControlTerm, guess_scales
from models.diffusion.control.network import ControlConfig
from models.diffusion.guidance import with_guidance, without_hints_of, without_text
from models.diffusion.process import denoiser

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=["features", "dit"])
def base(request):
    return trained(BASES[request.param])


def control(base, seed=0, **options):
    """A control that acts."""
    made = new(ControlConfig(base=base.config, hint=HINT, **options), base).eval()
    for place, weight in enumerate(made.parameters()):
        weight.add_(noise(*weight.shape, seed=seed + place) * 0.2)
    return made


def call(base, *terms, hints=CONDITION.hints, t=TIMES):
    condition = Condition(
        label=CONDITION.label, features=CONDITION.features, hints=hints * max(1, len(terms))
    )
    return ControlledNetwork(base, terms)(X, t, condition)


class Exploding:
    """A control that must not be computed."""

    decoder = None

    def residuals(self, *_):
        raise AssertionError


def test_without_an_acting_control_it_is_the_base_bit_for_bit(base):
    plain = base(X, TIMES, CONDITION.without_hints)
    off = Exploding()
    assert torch.equal(call(base, ControlTerm(off, scale=0.0)), plain)
    assert torch.equal(call(base, ControlTerm(off, interval=(0.8, 1.0))), plain)
    assert torch.equal(call(base, ControlTerm(off), hints=()), plain)
    assert torch.equal(call(base, ControlTerm(off), hints=(None,)), plain)


def test_scale_1_is_what_training_computes(base):
    made = control(base)
    trained_output = made(X, TIMES, CONDITION, base)
    assert torch.equal(call(base, ControlTerm(made)), trained_output)
    assert not torch.equal(trained_output, base(X, TIMES, CONDITION))


def test_several_controls_are_summed(base):
    made = control(base)
    half = ControlTerm(made, scale=0.5)
    torch.testing.assert_close(call(base, half, half), call(base, ControlTerm(made)))


def test_an_interval_holds_for_each_sample(base):
    made = control(base)
    mixed = call(base, ControlTerm(made, interval=(0.5, 1.0)))
    plain, whole = base(X, TIMES, CONDITION), call(base, ControlTerm(made))
    torch.testing.assert_close(mixed[0], plain[0])
    torch.testing.assert_close(mixed[1], whole[1])
    assert not torch.allclose(plain[1], whole[1])


def test_guess_modes_scale_as_published():
    power, logspace = guess_scales("power", 13), guess_scales("logspace", 13)
    assert power[-1] == logspace[-1] == 1.0
    assert power[0] == pytest.approx(0.825**12)
    assert power[-2] == 0.825
    assert logspace[0] == pytest.approx(0.1)
    assert logspace[-2] == pytest.approx(0.8254042)
    assert guess_scales("off", 3) == (1.0, 1.0, 1.0)


def test_guess_mode_scales_the_residuals(base):
    made = control(base)
    encoding = base.encode(X, TIMES, CONDITION)
    found = made.residuals(X, TIMES, CONDITION, CONDITION.hints[0], encoding)
    factors = guess_scales("power", len(found))
    scaled = tuple(each * factor for each, factor in zip(found, factors, strict=True))
    guessed = call(base, ControlTerm(made, guess="power"))
    torch.testing.assert_close(guessed, base.decode(encoding, scaled))


def test_the_unconditional_half_may_lack_the_control():
    base = trained(BASES["features"])
    network = ControlledNetwork(base, [ControlTerm(control(base))])
    plain = denoiser(network)
    free = without_hints_of(without_text(plain), {0})
    guided = with_guidance(plain, free, 3.0)(X, TIMES, CONDITION)
    with_control = plain(X, TIMES, CONDITION)
    without = denoiser(base)(X, TIMES, CONDITION.without_text.without_hints)
    torch.testing.assert_close(guided.x0, without.x0 + 3 * (with_control.x0 - without.x0))


def test_a_control_of_the_middle_alone_joins_a_whole_one():
    base = trained(BASES["features"])
    whole, middle = control(base), control(base, seed=50, middle_only=True)
    encoding = base.encode(X, TIMES, CONDITION)
    *rest, one = whole.residuals(X, TIMES, CONDITION, CONDITION.hints[0], encoding)
    (other,) = middle.residuals(X, TIMES, CONDITION, CONDITION.hints[0], encoding)
    expected = base.decode(encoding, (*rest, one + other))
    assert torch.equal(call(base, ControlTerm(middle), ControlTerm(whole)), expected)


def test_an_unlocked_control_brings_its_decoder():
    base = trained(BASES["features"])
    made = control(base, unlocked=True)
    own = made(X, TIMES, CONDITION, base)
    assert torch.equal(call(base, ControlTerm(made)), own)
    made.decoder.out.bias.add_(1)
    torch.testing.assert_close(call(base, ControlTerm(made)), own + 1)
    with pytest.raises(UserError, match="only one"):
        ControlledNetwork(base, [ControlTerm(made)] * 2)


def test_another_number_of_hints_than_of_controls_is_refused(base):
    network = ControlledNetwork(base, [ControlTerm(control(base))])
    with pytest.raises(UserError, match="2 hints for 1 controls"):
        network(X, TIMES, Condition(label=CONDITION.label, hints=CONDITION.hints * 2))
