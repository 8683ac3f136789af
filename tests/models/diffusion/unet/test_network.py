"""The UNet: published sizes, agreement with the published networks, and its own behaviour."""

import weakref

import pytest
import torch
from pydantic import ValidationError

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.process import ProcessConfig
from models.diffusion.unet.network import UNetConfig

LEARNED = ProcessConfig(prediction_type="noise", variance="learned")
SIX = (1, 1, 2, 2, 4, 4)
ADM_256 = {"image_size": 256, "channels": 256, "multipliers": SIX, "process": LEARNED}
PUBLISHED = {
    # arXiv 2006.11239
    "ddpm cifar10": (
        {
            "image_size": 32,
            "channels": 128,
            "multipliers": (1, 2, 2, 2),
            "attention": (16,),
            "heads": 1,
            "modulation": "add",
            "resampling": "convolution",
            "epsilon": 1e-6,
        },
        35_746_307,
    ),
    # arXiv 2105.05233
    "adm 64": (
        {"image_size": 64, "channels": 192, "depth": 3, "classes": 1000, "process": LEARNED},
        295_904_454,
    ),
    "adm 128": (
        {
            "image_size": 128,
            "channels": 256,
            "multipliers": (1, 1, 2, 3, 4),
            "heads": 4,
            "classes": 1000,
            "process": LEARNED,
        },
        421_529_606,
    ),
    "adm 256": ({**ADM_256, "classes": 1000}, 553_838_086),
    "adm 256 unconditional": (ADM_256, 552_814_086),
    "adm 512": (
        {**ADM_256, "image_size": 512, "multipliers": (0.5, *SIX), "classes": 1000},
        558_997_638,
    ),
    "adm 64 to 256": (
        {
            **ADM_256,
            "channels": 192,
            "heads": 4,
            "classes": 1000,
            "low_resolution": {"size": 64},
        },
        311_795_910,
    ),
    "adm 128 to 512": (
        {
            **ADM_256,
            "image_size": 512,
            "channels": 192,
            "attention": (32, 16),
            "classes": 1000,
            "low_resolution": {"size": 128},
        },
        308_835_270,
    ),
    # arXiv 2112.10741
    "glide 64": (
        {
            "image_size": 64,
            "channels": 512,
            "depth": 3,
            "text": {"vocab": 50257, "length": 128, "width": 2048, "layers": 24, "heads": 32},
            "process": LEARNED,
        },
        3_554_414_086,
    ),
    # arXiv 2204.06125, table 3
    "unclip 64 to 256": (
        {
            "image_size": 256,
            "channels": 320,
            "depth": 3,
            "attention": (),
            "low_resolution": {"size": 64},
        },
        736_263_363,
    ),
    "unclip 256 to 1024": (
        {
            "image_size": 1024,
            "channels": 192,
            "multipliers": SIX,
            "attention": (),
            "low_resolution": {"size": 256},
        },
        284_423_043,
    ),
}
# arXiv 2112.10752, by the released configurations
LATENT = {"modulation": "add", "resampling": "convolution"}
SD = {"image_channels": 4, "channels": 320, "multipliers": (1, 2, 4, 4), "heads": 8, **LATENT}
PUBLISHED |= {
    "ldm-4 unconditional": (
        {"image_size": 64, "channels": 224, "head_width": 32, **LATENT},
        274_056_163,
    ),
    "ldm churches": (
        {
            "image_size": 32,
            "image_channels": 4,
            "channels": 192,
            "multipliers": (1, 2, 2, 4, 4),
            "attention": (32, 16, 8, 4),
            "heads": 8,
        },
        294_966_916,
    ),
    "ldm class-conditional": (
        {
            "image_size": 64,
            "channels": 192,
            "multipliers": (1, 2, 3, 5),
            "heads": 1,
            "features": {"width": 512},
            "transformer": {},
            **LATENT,
        },
        400_920_579,
    ),
    "ldm class-conditional, f8": (
        {
            "image_size": 32,
            "image_channels": 4,
            "channels": 256,
            "multipliers": (1, 2, 4),
            "heads": 8,
            "features": {"width": 512},
            "transformer": {},
            **LATENT,
        },
        394_984_196,
    ),
    "ldm text to image": (
        {**SD, "image_size": 32, "features": {"width": 1280}, "transformer": {}},
        872_300_484,
    ),
    "stable diffusion 1": (
        {
            **SD,
            "image_size": 64,
            "attention": (64, 32, 16),
            "features": {"width": 768},
            "transformer": {},
        },
        859_520_964,
    ),
}
TINY = {
    "image_size": 16,
    "channels": 16,
    "multipliers": (1, 2),
    "depth": 1,
    "attention": (8,),
    "head_width": 8,
    "groups": 16,
}
TEXT_ENCODER = {"vocab": 20, "length": 5, "width": 24, "layers": 2, "heads": 3}
CLASSES = UNetConfig(**TINY, classes=5, process=LEARNED)
CAPTIONS = UNetConfig(**TINY, text=TEXT_ENCODER, process=LEARNED)
LATENTS = UNetConfig(
    **TINY, image_channels=4, features={"width": 12}, transformer={"depth": 2}, **LATENT
)
UPSAMPLER = UNetConfig(
    **{**TINY, "attention": ()},
    heads=2,
    low_resolution={"size": 4, "condition_on_noise_level": True},
)
TEXT = torch.tensor([[3, 4, 5, 0, 0], [7, 8, 0, 0, 0]])
TIMES = torch.tensor([0.25, 0.75])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def woken(config):
    """A network whose weights are all drawn, each parameter from a generator of its own."""
    model = config.build().eval()
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            weight.copy_(noise(weight.shape, seed=place) * (0.05 if weight.ndim > 1 else 0.3))
    return model


X = noise(2, 3, 16, 16)
LOW = noise(2, 3, 4, 4, seed=1)
LEVEL = torch.tensor([0.1, 0.3])
FEATURES = Condition(features=noise(2, 5, 12, seed=2))
EACH = [
    (CLASSES, Condition(label=torch.tensor([3, 1]))),
    (CAPTIONS, Condition(text=TEXT)),
    (UPSAMPLER, Condition(low_res=LOW, noise_level=LEVEL)),
]


@pytest.mark.parametrize(("settings", "count"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_network_has_exactly_its_parameters(settings, count):
    with torch.device("meta"):
        model = UNetConfig(**settings).build()
    assert sum(weight.numel() for weight in model.parameters()) == count


def test_the_last_layers_give_six_channels_where_the_variance_is_learned_and_three_else():
    with torch.device("meta"):
        assert UNetConfig(**TINY, process=LEARNED).build().out.out_channels == 6
        assert UNetConfig(**TINY).build().out.out_channels == 3


def test_a_null_class_is_one_label_more():
    plain, more = (woken(UNetConfig(**TINY, classes=5, null_class=each)) for each in (False, True))
    assert plain.label.weight.shape == (5, 64)
    assert more.label.weight.shape == (6, 64)
    with torch.no_grad():
        none = more(X, TIMES, Condition(label=torch.tensor([5, 5])))
        assert not torch.allclose(none, more(X, TIMES, Condition(label=torch.tensor([4, 4]))))
    with pytest.raises(ValidationError, match="null_class needs classes"):
        UNetConfig(**TINY, null_class=True)


def test_features_are_used_and_empty_ones_are_zeros():
    model = woken(LATENTS)
    x = noise(2, 4, 16, 16)
    plain = model(x, TIMES, FEATURES)
    assert plain.shape == x.shape
    other = Condition(features=FEATURES.features * 0.5)
    assert not torch.allclose(plain, model(x, TIMES, other), atol=1e-4)
    zeros = Condition(features=torch.zeros(2, 5, 12))
    empty = model(x, TIMES, FEATURES.without_text)
    assert torch.equal(empty, model(x, TIMES, zeros))
    plain.square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    with pytest.raises(UserError, match="features of captions"):
        model(x, TIMES, Condition(text=TEXT))
    joint = woken(UNetConfig(**TINY, features={"width": 12}))
    assert not torch.allclose(joint(X, TIMES, FEATURES), joint(X, TIMES, other), atol=1e-4)


def test_a_transformer_may_use_the_text_encoder_of_the_network():
    model = woken(UNetConfig(**TINY, text=TEXT_ENCODER, transformer={}))
    plain = model(X, TIMES, Condition(text=TEXT))
    assert not torch.allclose(plain, model(X, TIMES, Condition(text=TEXT.flip(1))), atol=1e-4)


def test_latents_of_any_number_of_channels_are_denoised():
    model = woken(UNetConfig(**TINY, image_channels=4, process=LEARNED))
    assert model(noise(2, 4, 16, 16), TIMES, Condition()).shape == (2, 8, 16, 16)


# What guided-diffusion and glide-text2im (openai, 2021 and 2022) give at pixel (3, 5) of X with the
# weights of `woken`, renamed to their names and order, and 32 groups set to 16.
@pytest.mark.parametrize(
    ("config", "condition", "expected"),
    [
        (
            CLASSES,
            Condition(label=torch.tensor([3, 1])),
            [
                *(0.00542, 0.45284, -0.08299, 0.1593, -0.27462, 0.06675),
                *(-0.01136, 0.35563, -0.06481, -0.28417, -0.02064, 0.47367),
            ],
        ),
        (
            UNetConfig(**TINY, heads=1, modulation="add", resampling="convolution"),
            Condition(),
            [0.25697, -0.67008, 0.32255, 0.05325, -0.80083, 0.28715],
        ),
        (
            UNetConfig(**{**TINY, "attention": ()}, heads=2, low_resolution={"size": 4}),
            Condition(low_res=LOW),
            [0.10172, -0.66458, -0.00866, 0.09715, -0.50263, -0.00346],
        ),
        (
            CAPTIONS,
            Condition(text=TEXT),
            [
                *(0.13092, 0.61295, -0.54942, -0.5948, -0.11887, -0.56892),
                *(0.21957, 0.62237, -0.65125, -0.51574, -0.07887, -0.49593),
            ],
        ),
    ],
    ids=["adm", "ddpm", "super-resolution", "glide"],
)
@torch.no_grad()
def test_outputs_are_those_of_the_published_networks(config, condition, expected):
    out = woken(config)(X, TIMES, condition)
    assert out[:, :, 3, 5].flatten().tolist() == pytest.approx(expected, abs=3e-5)


@pytest.mark.parametrize(("config", "condition"), EACH)
def test_a_new_network_says_nothing_and_a_trained_one_uses_every_parameter(config, condition):
    assert float(config.build()(X, TIMES, condition).detach().abs().max()) == 0
    model = woken(config)
    model(X, TIMES, condition).square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # a caption token that no caption holds
    assert [name for name in still if name != "text.token.weight"] == []


@torch.no_grad()
def test_the_output_depends_on_every_condition():
    classes, captions, upsampler = (woken(config) for config, _ in EACH)
    for model, one, other in (
        (classes, Condition(label=torch.tensor([3, 1])), Condition(label=torch.tensor([2, 1]))),
        (captions, Condition(text=TEXT), Condition(text=TEXT).without_text),
        (captions, Condition(text=TEXT), Condition(text=TEXT.flip(1))),
        (
            upsampler,
            Condition(low_res=LOW, noise_level=LEVEL),
            Condition(low_res=LOW + 0.1, noise_level=LEVEL),
        ),
        (
            upsampler,
            Condition(low_res=LOW, noise_level=LEVEL),
            Condition(low_res=LOW, noise_level=LEVEL + 0.2),
        ),
    ):
        plain = model(X, TIMES, one)
        assert not torch.allclose(plain[0], model(X, TIMES, other)[0], atol=1e-4)
        assert not torch.allclose(plain, model(X, TIMES + 0.1, one), atol=1e-4)
        assert not torch.allclose(plain, model(X * 0.5, TIMES, one), atol=1e-4)


@torch.no_grad()
def test_skip_connections_are_freed_before_the_last_layer():
    model, alive = woken(CLASSES), []
    for stage in (model.stem, *model.down):
        stage.register_forward_hook(lambda _, __, output: alive.append(weakref.ref(output)))
    found = []
    model.out.register_forward_pre_hook(lambda *_: found.append([each() for each in alive]))
    model(X, TIMES, Condition(label=torch.tensor([0, 1])))
    assert len(alive) > 2
    assert found == [[None] * len(alive)]


@torch.no_grad()
def test_an_upsampler_trained_on_crops_runs_at_full_size():
    whole = woken(UPSAMPLER)(
        noise(2, 3, 32, 32), TIMES, Condition(low_res=noise(2, 3, 8, 8), noise_level=LEVEL)
    )
    assert whole.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(("config", "condition"), EACH)
def test_networks_train_in_bf16_and_under_autocast_and_answer_in_fp32(config, condition):
    model = woken(config)
    exact = model(X, TIMES, condition).detach()
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(X, TIMES, condition)
    cast.square().sum().backward()
    assert all(bool(w.grad.isfinite().all()) for w in model.parameters() if w.grad is not None)
    whole = model.bfloat16()(X, TIMES, condition)
    for got in (cast, whole):
        assert got.dtype == torch.float32
        assert float((got.detach() - exact).abs().mean() / exact.abs().mean()) < 0.1
    whole.square().sum().backward()


def test_conditions_must_be_there_and_fit():
    for config, missing in ((CLASSES, "class"), (CAPTIONS, "captions"), (UPSAMPLER, "level")):
        with pytest.raises(UserError, match=missing):
            config.build()(X, TIMES, Condition(low_res=LOW))
    with pytest.raises(UserError, match="low-resolution"):
        UPSAMPLER.build()(X, TIMES, Condition(noise_level=LEVEL))
    with pytest.raises(UserError, match="multiples of 2, got 15 x 16"):
        CLASSES.build()(X[:, :, 1:], TIMES, Condition(label=torch.tensor([1, 2])))
    with pytest.raises(UserError, match="no low-resolution input"):
        _ = CLASSES.build().augmentation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 17}, "image_size 17 is not a multiple of .* = 2"),
        ({"attention": (4,)}, r"attention 4: the levels have sides \[16, 8\]"),
        ({"channels": 24}, "a level of 24 features is not a multiple of groups"),
        ({"head_width": 12}, "32 features cannot be shared by the attention's heads"),
        ({"heads": 3}, "32 features cannot be shared by the attention's heads"),
        ({"low_resolution": {"size": 16}}, "larger multiple of low_resolution.size"),
        ({"low_resolution": {"size": 5}}, "larger multiple of low_resolution.size"),
        ({"text": {"vocab": 9, "length": 4, "width": 10, "heads": 4}}, "multiple of heads 4"),
        ({"multipliers": ()}, "at least 1 item"),
        ({"transformer": {}}, "transformer: its cross-attention"),
        ({"text": TEXT_ENCODER, "features": {"width": 3}}, "only one of them"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        UNetConfig(**{**TINY, **change})


def test_a_class_may_be_the_one_token_of_cross_attention():
    config = UNetConfig(**TINY, classes=5, null_class=True, class_token=12, transformer={})
    model = woken(config)
    assert model.label.weight.shape == (6, 12)
    assert list(model.conditioners) == ["class_embedding"]
    labels = [Condition(label=torch.tensor(each)) for each in ([3, 1], [2, 1])]
    plain, other = (model(X, TIMES, each) for each in labels)
    assert float((plain - other)[0].detach().abs().max()) > 1e-5
    assert torch.equal(plain[1], other[1])
    plain.square().sum().backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # the softmax over one token is 1 whatever the query is
    assert {name.split(".blocks.0.")[-1] for name in still} == {
        "cross_norm.weight",
        "cross_norm.bias",
        "cross_attention.query.weight",
    }
    with pytest.raises(UserError, match="class labels"):
        model(X, TIMES, Condition(text=TEXT))
    for change in ({"classes": 5}, {"transformer": {}, "features": {"width": 3}}):
        with pytest.raises(ValidationError, match="class_token needs classes and transformer"):
            UNetConfig(**TINY, **change, class_token=4)
    with pytest.raises(ValidationError, match="already has other tokens"):
        UNetConfig(**TINY, classes=5, text=TEXT_ENCODER, transformer={}, class_token=4)


def test_captions_of_latent_diffusions_text_encoder_act_in_cross_attention_alone():
    text = {**TEXT_ENCODER, "form": "ldm", "heads": 2, "head_width": 8}
    model = woken(UNetConfig(**TINY, text=text, transformer={}))
    assert list(model.conditioners) == ["text_encoder"]
    names = {name for name, _ in model.named_parameters()}
    assert not [name for name in names if name.startswith(("caption", "text.pad"))]
    assert "text.blocks.0.attention.qkv.bias" not in names
    assert model.text.blocks[0].attention.qkv.weight.shape == (3 * 2 * 8, 24)
    assert model.text(TEXT).pooled is None
    plain = model(X, TIMES, Condition(text=TEXT))
    plain.square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    other = model(X, TIMES, Condition(text=TEXT.flip(1)))
    assert float((plain - other).detach().abs().max()) > 1e-6
