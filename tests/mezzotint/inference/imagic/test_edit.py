"""An edit by Imagic of a cascade and of a latent system: what changes, and that nothing stays."""

from dataclasses import replace

import pytest
import torch
from saved_network import saved

from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.inference.config import (
    CascadeSystem,
    DiffusionSystem,
    LatentSystem,
    StageSampling,
)
from mezzotint.inference.imagic import edit as imagic_edit
from mezzotint.inference.imagic import fit
from mezzotint.inference.imagic.config import ImagicConfig, Optimization
from mezzotint.inference.imagic.edit import ImagicRequest, edit
from mezzotint.inference.imagic.scores import FeatureDistance, ImagicScores, Score, scores_of
from mezzotint.inference.imagic.subject import subject_of
from mezzotint.inference.load import load_generator
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.diffusion.sampling import LatentSampling
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage

WORDS = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
TARGET = "woman cook"
UNET = {"channels": 8, "multipliers": (1,), "depth": 1, "groups": 4, "head_width": 4}
STEPS = Optimization(steps=3, lr=1e-2)
CONFIG = ImagicConfig(embedding=STEPS, network=STEPS, upsampler=STEPS, batch=2)
SCALING = LatentScaling(mean=0.1, std=2.0, samples=10)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cascade whose base has dropout, and a latent system; untrained but not blank."""
    root = tmp_path_factory.mktemp("imagic")
    captions = {"tokenizer": Tokenizer.train(WORDS, 40), "text_length": 6}
    base = TextDiffusionConfig(
        image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=40, text_length=6,
        dropout=0.1,
    )  # fmt: skip
    saved(root / "base", base, **captions)
    saved(root / "up", SuperResolutionConfig(low_size=8, image_size=16, channels=(8,), blocks=1))
    stage = AutoencoderConfig.model_validate(
        {
            "image_size": 16,
            "channels": 4,
            "pyramid": {"kind": "resnet", "width": 4, "multipliers": [1, 2], "blocks": 1,
                        "groups": 2},
            "bottleneck": {"kind": "gaussian"},
        }
    )  # fmt: skip
    where = saved(root / "stage", stage, spread=0.05)
    record = FirstStage(model=where, digest=store.describe(where).digest, scaling=SCALING)
    text = {"vocab": 40, "length": 6, "width": 8, "layers": 1, "heads": 1}
    latent = UNetConfig(**UNET, image_size=8, image_channels=4, attention=(8,), text=text)
    saved(root / "unet", latent, first_stage=record, **captions)
    return root


@pytest.fixture(scope="module")
def systems(home):
    cascade = CascadeSystem(
        base=str(home / "base"),
        upsampler=str(home / "up"),
        base_sampling=StageSampling(steps=2, guidance=2.0),
        upsampler_sampling=StageSampling(steps=2, level=0.1),
    )
    latent = LatentSystem(model=str(home / "unet"), sampling=LatentSampling(steps=2), negative=None)
    return {
        name: load_generator(system, precision="fp32")
        for name, system in (("cascade", cascade), ("latent", latent))
    }


@pytest.fixture(params=["cascade", "latent"])
def system(systems, request):
    return systems[request.param]


@pytest.fixture(params=[None, 2], ids=["whole weights", "adapters"])
def config(request):
    return CONFIG.model_copy(update={"rank": request.param})


def picture(seed=3):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (16, 16, 3), generator=rng, dtype=torch.uint8)


def request_of(**settings):
    return ImagicRequest(**{"image": picture(), "target": TARGET, "etas": (0.0, 1.0)} | settings)


def weights(system):
    subject = subject_of(system)
    networks = [subject.network, *(stage.network for stage in subject.stages)]
    return [
        {name: weight.clone() for name, weight in network.state_dict().items()}
        for network in networks
    ]


def same(one, other):
    return all(
        here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
        for here, there in zip(one, other, strict=True)
    )


def test_an_edit_lowers_the_loss_and_leaves_the_system_as_it_was(system, config):
    before = weights(system)
    result = edit(system, request_of(number=2), config)
    assert result.images.shape == (2, 2, 16, 16, 3)
    assert result.images.dtype == torch.uint8
    losses = list(result.losses.values())
    assert losses[0] > losses[1] > losses[2]
    assert same(weights(system), before)
    assert all(not network.training for network in networks_of(system))
    assert not torch.equal(result.images[0], result.images[1])


def test_an_image_does_not_depend_on_the_others(systems):
    system = systems["cascade"]
    result = edit(system, request_of(number=2), CONFIG)
    more = edit(system, request_of(number=2, etas=(0.5, 1.0, 0.0), batch_size=3), CONFIG)
    assert int((more.images[[2, 1]].int() - result.images.int()).abs().max()) <= 1


def test_without_comparison_the_images_are_the_same(systems):
    system = systems["latent"]
    result = edit(system, request_of(compares=False), CONFIG)
    assert torch.equal(result.images, edit(system, request_of(), CONFIG).images)
    assert result.losses == {}
    assert result.unedited.shape == (0, 16, 16, 3)


def networks_of(system):
    subject = subject_of(system)
    return [subject.network, *(stage.network for stage in subject.stages)]


def test_without_training_every_eta_is_the_unedited_sample(system):
    still = Optimization(steps=0, lr=1.0)
    config = ImagicConfig(embedding=still, network=still, upsampler=still)
    result = edit(system, request_of(etas=(0.0, 0.3, 1.0)), config)
    for images in result.images:
        assert int((images.int() - result.unedited.int()).abs().max()) <= 1


def test_stage_a_changes_the_embedding_alone_and_stage_b_the_network_alone(system, monkeypatch):
    seen = {}
    keep = fit.Fitter.fit

    def observe(self, name, parameters, loss, settings, progress=None):
        before = weights(system)
        training = [network.training for network in networks_of(system)]
        start = {key: value.detach().clone() for key, value in parameters.items()}
        keep(self, name, parameters, loss, settings, progress)
        changed = any(not torch.equal(start[key], value) for key, value in parameters.items())
        seen[name] = (changed, same(weights(system), before), training)

    monkeypatch.setattr(fit.Fitter, "fit", observe)
    edit(system, request_of(), CONFIG)
    modes = {name: found[2] for name, found in seen.items()}
    assert seen["embedding"][:2] == (True, True)
    assert not any(modes["embedding"])
    assert seen["network"][:2] == (True, False)
    assert modes["network"][0]
    if "upsampler_0" in seen:
        assert modes["upsampler_0"] == [False, True]


def test_a_latent_is_a_new_sample_of_the_posterior_each_time(systems):
    subject = subject_of(systems["latent"])
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        image = subject.image_at(picture(), 16)
        sample = subject.clean(image)
        draws = torch.stack([sample(rng) for _ in range(256)])
        mean = subject.space.encode(image)
    assert not torch.equal(draws[0], draws[1])
    spread = draws.std(dim=0) / 16
    assert bool(((draws.mean(dim=0) - mean).abs() < 5 * spread).all())


@pytest.mark.parametrize(
    ("stop_in", "rank"), [("embedding", None), ("network", None), ("upsampler_0", 2)]
)
def test_an_interrupted_edit_goes_on_to_the_same_images(systems, stop_in, rank, tmp_path):
    system, config = systems["cascade"], CONFIG.model_copy(update={"rank": rank})
    before, whole = weights(system), edit(system, request_of(), config)

    def stop(phase):
        def progress(done, total):
            if phase.endswith(stop_in) and done == 2:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        edit(system, request_of(), config, work=tmp_path / "work", phases=stop, save_seconds=0)
    assert same(weights(system), before)
    resumed = edit(system, request_of(), config, work=tmp_path / "work")
    assert torch.equal(resumed.images, whole.images)
    assert resumed.losses == whole.losses


def test_a_finished_edit_only_samples(systems, tmp_path, monkeypatch):
    system, work = systems["latent"], tmp_path / "work"
    first = edit(system, request_of(), CONFIG, work=work)
    monkeypatch.setattr(imagic_edit, "image_loss", lambda *_: lambda rng: torch.zeros(()))
    second = edit(system, request_of(etas=(1.0,)), CONFIG, work=work)
    assert int((second.images[0].int() - first.images[1].int()).abs().max()) <= 1


def test_the_directory_of_another_edit_is_refused(systems, tmp_path):
    system, work = systems["latent"], tmp_path / "work"
    short = CONFIG.model_copy(update={"network": Optimization(steps=1, lr=1e-3)})
    edit(system, request_of(), short, work=work)
    for request in (request_of(target="man cook"), request_of(image=picture(4))):
        with pytest.raises(UserError, match="holds another edit"):
            edit(system, request, short, work=work)
    with pytest.raises(UserError, match="settings is"):
        edit(system, request_of(), CONFIG, work=work)
    (work / "network.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"network\.safetensors: cannot be read"):
        edit(system, request_of(), short, work=work)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="is no directory of an edit"):
        edit(system, request_of(), short, work=tmp_path / "other")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": picture()[:8]}, r"image: has shape \(8, 16, 3\).*edits RGB images \(16, 16, 3"),
        ({"image": picture()[..., :1]}, r"has shape \(16, 16, 1\)"),
        ({"image": picture().float()}, "of torch.float32"),
        ({"target": " "}, "target: is empty"),
        ({"etas": ()}, "etas: give at least one"),
    ],
)
def test_what_cannot_be_edited_is_refused(systems, settings, message):
    with pytest.raises(UserError, match=message):
        edit(systems["latent"], request_of(**settings), CONFIG)


def test_a_system_without_captions_is_refused(home, tmp_path):
    where = saved(tmp_path / "plain", UNetConfig(**UNET, image_size=16, attention=()))
    system = load_generator(DiffusionSystem(model=where), precision="fp32")
    with pytest.raises(UserError, match="is not conditioned on captions"):
        edit(system, request_of(), CONFIG)


def test_a_changed_model_directory_is_not_taken_for_the_original(systems, home, monkeypatch):
    other = store.load(str(home / "base"))
    with torch.no_grad():
        next(other.parameters()).add_(1)
    cascade = systems["cascade"]
    before = weights(cascade)
    with monkeypatch.context() as patched:
        patched.setattr(store, "load", lambda directory, device: other)
        with pytest.raises(UserError, match="holds other weights than those"):
            edit(cascade, request_of(), CONFIG.model_copy(update={"upsampler": STEPS}))
    for network, kept in zip(networks_of(cascade), before, strict=True):
        network.load_state_dict(kept)


def test_the_best_eta_has_the_highest_score_of_those_nearer_than_the_unedited_sample():
    found = ImagicScores(
        [Score(0.1, 60.0), Score(0.3, 80.0), Score(0.6, 90.0)], Score(0.5, 90.0), Score(0.0, 50.0)
    )
    assert found.best == 1
    assert replace(found, unedited=Score(0.05, 90.0)).best == 2
    assert replace(found, unedited=Score(0.9, 90.0)).best == 2
    assert ImagicScores([Score(0.1)], Score(0.5), Score(0.0)).best is None


def test_scores_are_distances_from_the_source(systems):
    result = edit(systems["latent"], request_of(), CONFIG)
    distance = FeatureDistance.of(None, None, "cpu")
    scores = scores_of(result, picture(), TARGET, distance, None)
    assert scores.source == Score(0.0)
    assert len(scores.etas) == 2
    assert all(score.distance > 0 for score in (*scores.etas, scores.unedited))
