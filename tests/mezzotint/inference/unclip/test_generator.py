"""An unCLIP system as a generator."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from unclip_home import DECODER, DIM, PRIOR, UPSAMPLER, networks, write_system

from mezzotint.common.embedding_scaling import EmbeddingScaling
from mezzotint.common.errors import UserError
from mezzotint.inference.config import UnclipSystem
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.load import load_generator, with_config
from models import store
from models.diffusion.degradation import GaussianAugmentation
from models.diffusion.sampling import NFE
from models.diffusion.unet.conditions import LowResolutionConfig
from models.diffusion.unet.image_embedding import EmbeddingNoiseConfig, ImageEmbeddingConfig

CAPTIONS = ("woman pilot", "man cook")
PROMPTS = tuple(map(Prompt, CAPTIONS))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_system(tmp_path_factory.mktemp("unclip"))


@pytest.fixture(scope="module")
def system(config):
    return load_generator(config, precision="fp32")


def generate(system, prompts=PROMPTS, **settings):
    return system.generate(GenerationRequest(prompts, **settings))


def changed(config, **settings):
    return UnclipSystem.model_validate(config.model_dump(mode="json") | settings)


def test_a_caption_becomes_an_embedding_an_image_and_a_larger_one(system):
    seen = []
    result = system.generate(GenerationRequest(PROMPTS), progress=lambda *done: seen.append(done))
    assert result.images.shape == (2, 1, 16, 16, 3)
    # guided prior and decoder make two calls a step, for two candidates
    assert result.nfe == NFE(network=2 * 2 * 3 + 2 * 3 + 2)
    assert seen == sorted(seen)
    assert seen[-1] == (2, 2)
    assert torch.equal(result.images, generate(system).images)
    assert not torch.equal(result.images, generate(system, seed=1).images)
    protocol = system.protocol()
    assert protocol["digests"].keys() == {"clip", "prior", "decoder", "upsamplers.0"}
    assert protocol["embeddings"]["scaling"]["kind"] == "l2_sqrt_d"


def test_an_image_is_that_of_its_seed_caption_and_number(system):
    four = generate(system, number=2, seed=1).images
    alone = generate(system, (PROMPTS[1],), number=2, seed=1).images
    assert int((four[1:].int() - alone.int()).abs().max()) <= 1
    assert not torch.equal(four[0, 0], four[0, 1])


def test_given_embeddings_take_the_place_of_the_priors(system):
    torch.manual_seed(0)
    given = torch.randn(2, DIM)
    prompts = tuple(Prompt(key=str(each)) for each in range(2))
    result = generate(system, prompts, image_embedding=given)
    assert result.nfe == NFE(network=2 * 3 + 2)
    alone = generate(system, prompts[1:], image_embedding=given[1]).images
    assert int((result.images[1:].int() - alone.int()).abs().max()) <= 1
    other = generate(system, prompts, image_embedding=given.flip(0)).images
    assert not torch.equal(result.images, other)


def test_the_decoder_stops_where_a_truncated_upsampler_goes_on(system):
    low = LowResolutionConfig(size=8, augmentation=GaussianAugmentation())
    network = networks(UPSAMPLER.model_copy(update={"low_resolution": low})).eval()
    seen = []
    network.register_forward_pre_hook(lambda _, given: seen.append(given[2].low_res))
    one = {"steps": 2, "level": 0.3, "truncated": True}
    config = changed(system.config, upsampler_sampling=[one])
    stages = (replace(system.stages[0], network=network),)
    generate(replace(system, config=config, stages=stages))
    assert float(seen[0].abs().max()) > 1  # noise is not clamped
    latent = replace(system.decoder, space=SimpleNamespace(shape=(4, 2, 2), image_size=8))
    with pytest.raises(UserError, match="truncated needs a decoder of pixels"):
        generate(replace(system, config=config, stages=stages, decoder=latent))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (GenerationRequest((Prompt(),)), "captions: an unclip system generates from captions"),
        (GenerationRequest((Prompt("a", 1),)), "is not conditioned on classes"),
        (GenerationRequest(PROMPTS, hints=(torch.zeros(1, 8, 8),)), "has no controls"),
        (GenerationRequest(PROMPTS, image_embedding=torch.zeros(3, DIM)), r"takes \(6,\), or"),
        (
            GenerationRequest(PROMPTS, image_embedding=torch.full((DIM,), torch.nan)),
            "values that are not finite",
        ),
    ],
)
def test_what_the_system_does_not_take_is_refused(system, request_, message):
    with pytest.raises(UserError, match=message):
        system.generate(request_)


def test_without_a_prior_it_generates_from_embeddings_alone(config):
    system = load_generator(changed(config, prior=None), precision="fp32")
    with pytest.raises(UserError, match=r"system\.prior: the system has no prior"):
        generate(system)
    assert generate(system, image_embedding=torch.ones(DIM)).images.shape == (2, 1, 16, 16, 3)


def test_other_systems_refuse_image_embeddings(config):
    with pytest.raises(UserError, match="does not generate from image embeddings"):
        GenerationRequest(PROMPTS, image_embedding=torch.ones(DIM)).refuse("cascade")


def test_best_of_keeps_the_sample_most_similar_to_the_caption(system):
    """Of the samples that one by one are those of the same random numbers."""
    prior, settings = system.prior, system.config.prior_sampling

    def sample(best_of):
        rng, chosen = torch.Generator().manual_seed(3), settings.model_copy()
        chosen = chosen.model_copy(update={"best_of": best_of})
        return prior.sample(CAPTIONS, chosen, rng, NFE()), rng

    with torch.no_grad():
        text = system.clip.encode_captions(CAPTIONS).embedding
        both, (first, rng) = sample(2)[0], sample(1)
        second = prior.sample(CAPTIONS, settings.model_copy(update={"best_of": 1}), rng, NFE())
    cosines = torch.stack(
        [torch.nn.functional.cosine_similarity(each, text) for each in (first, second)]
    )
    wanted = torch.stack([first, second])[cosines.argmax(0), torch.arange(2)]
    assert torch.equal(both, wanted)


def test_normalised_per_dimension_the_prior_is_clamped_and_its_output_scaled(tmp_path):
    mean, std = (1.0,) * DIM, (0.5,) * DIM
    scaling = EmbeddingScaling(kind="mean_std", dim=DIM, samples=4, mean=mean, std=std)
    system = load_generator(write_system(tmp_path, scaling=scaling), precision="fp32")
    with torch.no_grad():
        for parameter in system.prior.network.out.parameters():
            parameter.fill_(1e6)
        found = system.prior.sample(
            CAPTIONS,
            system.config.prior_sampling.model_copy(update={"guidance": 1.0}),
            torch.Generator().manual_seed(0),
            NFE(),
        )
    assert torch.allclose(((found - 1) / 0.5).abs(), torch.tensor(10.0), atol=0.01)


def test_sampling_settings_change_without_reading_the_models_again(system, config):
    chosen = with_config(system, changed(config, sampling={"steps": 5}))
    assert chosen.decoder is system.decoder
    assert generate(chosen, image_embedding=torch.ones(DIM)).nfe == NFE(network=5 + 2)


def test_models_that_do_not_belong_together_are_refused(config, tmp_path):
    other = write_system(tmp_path, scaling=EmbeddingScaling(kind="openai_17.2", dim=DIM, samples=4))
    with pytest.raises(UserError, match=r"l2_sqrt_d and system\.prior .* by openai_17\.2"):
        load_generator(changed(config, prior=other.prior))
    clip = store.load(other.clip)
    with torch.no_grad():
        clip.clip.text_projection.add_(1)
    info = store.describe(other.clip)
    store.save(
        other.clip, info.config, clip.state_dict(), card="", text_length=8,
        tokenizer=store.tokenizer_bytes(other.clip),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"system\.clip: is the CLIP .* of the embeddings of"):
        load_generator(changed(config, clip=other.clip))


@pytest.mark.parametrize(
    ("setting", "model", "message"),
    [
        ("decoder", "prior", "holds a diffusion_prior that is not conditioned on CLIP embeddings"),
        ("decoder", "upsampler", "holds a unet that is not conditioned on CLIP embeddings"),
        ("prior", "decoder", "holds a unet, not a prior of image embeddings"),
        ("upsamplers", "decoder", "upsamplers"),
    ],
)
def test_a_model_in_the_wrong_place_is_named_with_its_setting(config, setting, model, message):
    where = {"prior": config.prior, "decoder": config.decoder, "upsampler": config.upsamplers[0]}
    value = [where[model]] if setting == "upsamplers" else where[model]
    change = {setting: value} | ({"upsampler_sampling": []} if setting == "upsamplers" else {})
    with pytest.raises(UserError, match=message):
        load_generator(changed(config, **change))


def test_a_prior_without_the_record_of_its_embeddings_is_refused(config, tmp_path):
    text = store.describe(config.prior).text_encoder
    weights = networks(PRIOR).state_dict()
    store.save(str(tmp_path / "prior"), PRIOR, weights, card="", text_encoder=text)
    with pytest.raises(UserError, match="records no CLIP embeddings"):
        load_generator(changed(config, prior=str(tmp_path / "prior")))


def test_settings_for_another_number_of_upsamplers_are_refused(config):
    with pytest.raises(ValueError, match="has settings for 2 super-resolution models"):
        changed(config, upsampler_sampling=[{}, {}])


def test_a_decoder_of_noisy_embeddings_is_told_their_level(config, tmp_path):
    record = store.describe(config.decoder)
    reads = ImageEmbeddingConfig(dim=DIM, tokens=0, noise=EmbeddingNoiseConfig())
    noisy = DECODER.model_copy(update={"image_embedding": reads})
    store.save(
        str(tmp_path / "noisy"), noisy, networks(noisy).state_dict(), card="",
        embeddings=record.embeddings, text_encoder=record.text_encoder,
    )  # fmt: skip
    where = {"decoder": str(tmp_path / "noisy"), "upsamplers": [], "upsampler_sampling": []}
    images = {
        level: generate(load_generator(changed(config, **where, embedding_level=level))).images
        for level in (0, 800)
    }
    assert images[0].shape == (2, 1, 8, 8, 3)
    assert not torch.equal(images[0], images[800])
    again = load_generator(changed(config, **where, embedding_level=800))
    assert torch.equal(generate(again).images, images[800])
    assert again.protocol()["sampling"]["embedding_level"] == 800
    alone = generate(again, (PROMPTS[1],)).images
    assert int((images[800][1:].int() - alone.int()).abs().max()) <= 1
    for settings, message in (
        ({**where, "embedding_level": 1000}, "1000 is not one of the 1000 levels"),
        ({"embedding_level": 5}, "reads embeddings without noise; leave it out"),
    ):
        with pytest.raises(UserError, match=rf"system\.embedding_level: .*{message}"):
            load_generator(changed(config, **settings))
