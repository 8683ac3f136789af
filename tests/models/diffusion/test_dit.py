"""The diffusion transformer: published size, behaviour and impossible sizes.

Its outputs are held beside the released code's in unet/test_converters.py.
"""

import pytest
import torch
from pydantic import ValidationError

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.dit import DiTConfig
from models.diffusion.process import ProcessConfig
from models.nn.convolution import zero_module
from models.nn.embedding import sincos_positions

LEARNED = ProcessConfig(prediction_type="noise", variance="learned")
TINY = DiTConfig(
    image_size=8, image_channels=4, width=16, layers=2, heads=2, classes=3, process=LEARNED
)
TIMES = torch.tensor([0.2, 0.7])
LABEL = Condition(label=torch.tensor([0, 3]))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = noise(2, 4, 8, 8)


def woken():
    model = TINY.build().eval()
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            if weight.requires_grad:
                weight.add_(noise(*weight.shape, seed=place) * 0.2)
    return model


def test_dit_xl_2_has_exactly_its_parameters():
    config = DiTConfig(image_size=32, image_channels=4, classes=1000, process=LEARNED)
    with torch.device("meta"):
        model = config.build()
    assert sum(weight.numel() for weight in model.parameters()) == 675_129_632
    assert config.conditioning == {"class"}


def test_a_new_network_says_nothing_and_a_trained_one_uses_every_parameter():
    assert float(TINY.build()(X, TIMES, LABEL).detach().abs().max()) == 0
    model = woken()
    model(X, TIMES, LABEL).square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["position"]


@torch.no_grad()
def test_the_output_depends_on_image_position_time_and_class():
    model = woken()
    plain = model(X, TIMES, LABEL)
    assert plain.shape == (2, 8, 8, 8)
    for other in (
        model(X * 0.5, TIMES, LABEL),
        model(X, TIMES + 0.1, LABEL),
        model(X, TIMES, Condition(label=torch.tensor([1, 2]))),
        model(X.roll(2, dims=3), TIMES, LABEL).roll(-2, dims=3),
    ):
        assert not torch.allclose(plain[0], other[0], atol=1e-4)
        assert not torch.allclose(plain[1], other[1], atol=1e-4)


def test_without_classes_it_is_unconditional():
    config = TINY.model_copy(update={"classes": None})
    assert config.conditioning == frozenset()
    assert config.build()(X, TIMES, Condition()).shape == (2, 8, 8, 8)
    without_null = TINY.model_copy(update={"null_class": False}).build()
    assert without_null.label.weight.shape == (3, 16)


def test_positions_are_columns_then_rows_in_four_families_of_waves():
    waves = sincos_positions(3, 8).view(3, 3, 8)
    assert torch.equal(waves[0, 1, :4], waves[2, 1, :4])
    assert torch.equal(waves[1, 0, 4:], waves[1, 2, 4:])
    angle = torch.tensor([2.0, 0.02], dtype=torch.float64)
    wanted = torch.cat([angle.sin(), angle.cos()]).float()
    assert torch.equal(waves[0, 2, :4], wanted)
    assert torch.equal(waves[2, 0, 4:], wanted)


def test_a_little_training_lowers_the_error():
    torch.manual_seed(0)
    model = TINY.build()
    optimizer = torch.optim.Adam(
        [weight for weight in model.parameters() if weight.requires_grad], lr=3e-3
    )
    target = torch.cat([X, X], dim=1) * 0.5
    errors = []
    for _ in range(40):
        error = (model(X, TIMES, LABEL) - target).square().mean()
        errors.append(float(error.detach()))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[-1] < 0.3 * errors[0]


@torch.no_grad()
def test_it_runs_in_bf16_and_under_autocast_and_answers_in_fp32():
    model = woken()
    exact = model(X, TIMES, LABEL)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(X, TIMES, LABEL)
    for got in (cast, model.bfloat16()(X, TIMES, LABEL)):
        assert got.dtype == torch.float32
        assert float((got - exact).abs().mean() / exact.abs().mean()) < 0.1


def test_wrong_conditions_and_sizes_are_refused():
    with pytest.raises(UserError, match="class labels"):
        TINY.build()(X, TIMES, Condition())
    with pytest.raises(UserError, match="takes 8 x 8, got 8 x 4"):
        TINY.build()(X[..., :4], TIMES, LABEL)
    with pytest.raises(ValidationError, match="multiple of patch 3"):
        DiTConfig(image_size=8, patch=3)
    with pytest.raises(ValidationError, match="multiple of heads 5"):
        DiTConfig(image_size=8, heads=5)


CAPTIONS = DiTConfig(image_size=8, width=16, layers=2, heads=2, features={"width": 6})
OWN_TEXT = {"vocab": 9, "length": 4, "width": 8, "layers": 1, "heads": 2}


@pytest.mark.parametrize(
    ("config", "one", "other"),
    [
        (
            CAPTIONS,
            Condition(features=noise(2, 5, 6, seed=1)),
            Condition(features=noise(2, 5, 6, seed=2)),
        ),
        (
            DiTConfig(**{**CAPTIONS.model_dump(), "features": None, "text": OWN_TEXT}),
            Condition(text=torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]])),
            Condition(text=torch.tensor([[7, 8, 6, 0], [1, 2, 3, 0]])),
        ),
    ],
)
def test_captions_act_by_cross_attention_that_starts_as_the_identity(config, one, other):
    model, x = config.build().eval(), noise(2, 3, 8, 8)
    assert not any(block.cross_attention.out.weight.any() for block in model.blocks)
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            if weight.requires_grad:
                weight.add_(noise(*weight.shape, seed=place) * 0.2)
    plain = model(x, TIMES, one)
    assert float((plain - model(x, TIMES, other)).detach().abs().max()) > 1e-3
    plain.square().sum().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still <= {"position", "text.pad.table.weight"}
    with pytest.raises(UserError, match="captions"):
        model(x, TIMES, Condition())


def test_a_block_with_cross_attention_of_zero_is_the_plain_block():
    plain, captions = (
        DiTConfig(**{**CAPTIONS.model_dump(), "features": each}).block()
        for each in (None, {"width": 6})
    )
    state = {
        name: noise(*value.shape, seed=place) * 0.2
        for place, (name, value) in enumerate(plain.state_dict().items())
    }
    plain.load_state_dict(state)
    captions.load_state_dict(captions.state_dict() | state)
    zero_module(captions.cross_attention.out)
    x, vector, context = noise(2, 5, 16), noise(2, 16, seed=1), noise(2, 3, 16, seed=2)
    with torch.no_grad():
        assert torch.equal(plain(x, vector), captions(x, vector, context))
