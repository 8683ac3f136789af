"""A single diffusion model as an evaluation asks it, and its bits per dimension."""

import pytest
import torch
from mezzotint.inference.build import build_system

from data_pipeline.text.tokenizer import Tokenizer
from evaluation.metrics.likelihood import Integration, bits_per_dimension
from mezzotint.common.errors import UserError
from mezzotint.inference.config import CascadeSystem, DiffusionSystem
from mezzotint.inference.diffusion import Wish
from models import store
from models.autoencoders.dvae import DVAEConfig
from models.diffusion.sampling import NFE
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig

CAPTIONS = ("woman pilot", "man cook")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model directories of untrained networks that are not blank."""
    root = tmp_path_factory.mktemp("home")
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    configs = {
        "base": TextDiffusionConfig(
            image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=40, text_length=6
        ),
        "upsampler": SuperResolutionConfig(low_size=8, image_size=16, channels=(8,), blocks=1),
        "classes": UNetConfig(
            image_size=8, channels=8, multipliers=(1,), depth=1, groups=4, attention=(),
            head_width=4, classes=3,
        ),
        "dvae": DVAEConfig(image_size=16, vocab=8, width=8, groups=2, patch=2, first=8),
    }  # fmt: skip
    for name, config in configs.items():
        torch.manual_seed(0)
        network = config.build()
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.05 * torch.randn(weight.shape))
        reads = {"tokenizer": Tokenizer.train(words, 40), "text_length": 6}
        told = reads if name == "base" else {}
        store.save(str(root / name), config, network.state_dict(), card="tiny", **told)
    return root


def drawer(home, model="base", **settings):
    tree = {"kind": "diffusion", "model": str(home / model), "sampling": {"steps": 3}} | settings
    return build_system(DiffusionSystem.model_validate(tree), "fp32")


def test_the_same_captions_and_seed_give_the_same_pictures_and_their_calls(home):
    system = drawer(home, sampling={"steps": 3, "guidance": 2.0})
    drawn = system.draw(CAPTIONS, 5)
    assert drawn.pictures.shape == (2, 1, 8, 8, 3)
    assert drawn.calls == NFE(network=6)
    assert torch.equal(drawn.pictures, system.draw(CAPTIONS, 5).pictures)
    assert not torch.equal(drawn.pictures, system.draw(CAPTIONS, 6).pictures)
    protocol = system.protocol()
    assert {"sampler", "steps", "guidance", "digests", "precision"} <= protocol.keys()
    assert protocol["sampling"]["solver"] == {"kind": "ddim", "eta": 0.0}


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_a_picture_is_that_of_its_seed(home, solver):
    system = drawer(home, sampling={"steps": 3, "solver": {"kind": solver}})
    wishes = [Wish(seed, caption) for seed in (1, 2) for caption in CAPTIONS]
    four = system.paint(wishes).pictures
    assert torch.equal(four, system.paint(wishes).pictures)
    if solver == "ddim":  # which adds no noise
        alone = system.paint(wishes[3:]).pictures
        assert int((four[3:].int() - alone.int()).abs().max()) <= 1


def test_a_negative_caption_needs_guidance_and_changes_what_is_drawn(home):
    strong = {"steps": 3, "guidance": 4.0}
    plain = drawer(home, sampling=strong).draw(CAPTIONS, 0).pictures
    away = drawer(home, sampling=strong, negative="person cook").draw(CAPTIONS, 0).pictures
    assert not torch.equal(plain, away)
    with pytest.raises(UserError, match="set a guidance above 1"):
        drawer(home, negative="person cook").draw(CAPTIONS, 0)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish(0), "has not learnt to draw without one: name a class"),
        (Wish(0, label=3), "there is no class 3, classes are 0 to 2"),
        (Wish(0, caption="x", label=1), "is told no captions"),
    ],
)
def test_a_model_of_classes_says_what_it_must_be_told(home, wish, message):
    with pytest.raises(UserError, match=message):
        drawer(home, "classes").paint([wish])


def test_a_model_of_classes_is_not_judged_by_captions(home):
    with pytest.raises(UserError, match="is told no captions; an evaluation asks"):
        drawer(home, "classes").draw(CAPTIONS, 0)


def test_models_that_do_not_draw_by_themselves_are_refused(home):
    with pytest.raises(UserError, match="holds a dvae, not a diffusion model"):
        drawer(home, "dvae")
    with pytest.raises(Exception, match="upsampler: this model enlarges pictures"):
        drawer(home, "upsampler")


def test_a_cascade_takes_other_solvers_and_counts_its_calls(home):
    def cascade(**base):
        return build_system(
            CascadeSystem.model_validate(
                {
                    "base": str(home / "base"),
                    "upsampler": str(home / "upsampler"),
                    "base_sampling": {"steps": 3, "guidance": 2.0} | base,
                    "upsampler_sampling": {"steps": 2},
                }
            ),
            "fp32",
        )

    plain, heun = cascade(), cascade(solver={"kind": "heun"})
    assert plain.protocol()["sampler"] == "DDIM, uniform times, x0 clamped"
    assert heun.protocol()["sampler"] == "heun, log_snr times and DDIM, uniform times, x0 clamped"
    assert plain.draw(CAPTIONS, 0).calls == NFE(network=6 + 2)
    assert heun.draw(CAPTIONS, 0).calls == NFE(network=12 + 2)
    with pytest.raises(ValueError, match="eta belongs to DDIM"):
        cascade(eta=1.0, solver={"kind": "heun"})


def test_bits_per_dimension_do_not_depend_on_what_is_weighed_after(home):
    system = drawer(home)
    levels = torch.randint(
        256, (5, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    wishes = [Wish(0, "man cook")] * 5
    settings = Integration(steps=4, batch=2)
    seen = []
    bits = bits_per_dimension(system, levels, wishes, settings, lambda *done: seen.append(done))
    assert bits.each.shape == (5,)
    assert bits.mean.low <= bits.mean.value <= bits.mean.high
    assert bits.mean.n == 5
    assert seen[-1] == (12, 12)
    fewer = bits_per_dimension(system, levels[:4], wishes[:4], settings)
    assert torch.equal(bits.each[:4], fewer.each)
    assert bits.protocol["dequantisation"] == "uniform over 256 levels"
