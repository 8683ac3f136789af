"""An exported unCLIP system, opened and sampled by diffusers: the same images as here."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peer_outputs import furthest, outputs_of_peers

from data_pipeline.text.tokenizer import Tokenizer
from launch.weights.convert import export_model, import_weights
from launch.weights.unclip_folder import UnclipModels
from mezzotint.common.embedding_scaling import EmbeddingRecord, EmbeddingScaling
from mezzotint.common.errors import UserError
from mezzotint.inference.clip import ClipEmbedder
from models import store
from models.clip import ClipConfig
from models.diffusion.condition import Condition
from models.diffusion.guidance import with_guidance, without_embedding, without_text
from models.diffusion.prior.network import DiffusionPriorConfig
from models.diffusion.process import denoiser
from models.diffusion.solvers.ddpm import DDPM
from models.diffusion.thresholding import StaticThresholding
from models.diffusion.unet.network import UNetConfig
from models.diffusion.unet.unclip_weights import (
    DecoderState,
    decoder_settings,
    from_diffusers_decoder,
    to_diffusers_decoder,
)
from models.text_source import ClipText

PROMPTS, SEED, DIM = ["a red circle", "two blue squares"], 7, 16
COSINE = {"kind": "discrete", "betas": {"kind": "cosine"}}
NOISE = {"schedule": COSINE, "prediction_type": "noise"}
CLIP = ClipConfig(
    image_size=16,
    patch=8,
    vision_width=DIM,
    vision_layers=1,
    text_vocab=60,
    text_length=12,
    text_width=DIM,
    text_layers=1,
    head_width=8,
    embed=DIM,
)
PRIOR = DiffusionPriorConfig(
    dim=DIM,
    features={"width": DIM},
    length=12,
    width=16,
    layers=1,
    heads=2,
    process={"schedule": COSINE, "prediction_type": "x0"},
)
LEVELS = {"channels": 8, "multipliers": (1, 2), "depth": 1, "head_width": 8, "groups": 4}
DECODER = UNetConfig(
    **LEVELS,
    image_size=8,
    attention=(4,),
    features={"width": DIM, "projection": 10},
    text_embedding=DIM,
    image_embedding={"dim": DIM, "tokens": 2},
    process={**NOISE, "variance": "learned"},
)
FIXED = DECODER.model_copy(
    update={"process": DECODER.process.model_copy(update={"variance": "fixed"})}
)
UPSAMPLER = UNetConfig(
    **LEVELS,
    image_size=16,
    attention=(),
    middle_attention=False,
    modulation="add",
    low_resolution={"size": 8, "interpolation": "bicubic"},
    process=NOISE,
)
DECODERS = {"learned": DECODER, "fixed": FIXED}


def random_weights(config):
    """Random weights that all matter."""
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(5)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in config.build().state_dict().items()
    }


def saved(where, config, **more):
    store.save(str(where), config, random_weights(config), card="# test\n", **more)


def scaling():
    generator = torch.Generator().manual_seed(2)
    return EmbeddingScaling(
        kind="mean_std",
        dim=DIM,
        samples=9,
        mean=tuple(torch.randn(DIM, generator=generator).tolist()),
        std=tuple((torch.rand(DIM, generator=generator) + 0.2).tolist()),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model directories of two systems, exported."""
    home = tmp_path_factory.mktemp("unclip")
    tokenizer = Tokenizer.train([*PROMPTS, "two blue stars"] * 3, 60)
    saved(home / "clip", CLIP, tokenizer=tokenizer, text_length=CLIP.text_length)
    text, digest = ClipText(model=str(home / "clip")), store.describe(str(home / "clip")).digest
    record = EmbeddingRecord(model=str(home / "clip"), digest=digest, scaling=scaling())
    saved(home / "prior", PRIOR, text_encoder=text, embeddings=record)
    saved(home / "upsampler", UPSAMPLER)
    models = UnclipModels(str(home / "prior"), str(home / "upsampler"))
    for name, config in DECODERS.items():
        saved(home / name, config, text_encoder=text, embeddings=record)
        done = export_model(str(home / name), home / f"{name}_folder", "diffusers", unclip=models)
        assert done.note == "UnCLIPPipeline.from_pretrained opens it"
    return home


@pytest.fixture(scope="module")
def given():
    generator = torch.Generator().manual_seed(1)
    return {
        "noise": torch.randn(2, 3, 8, 8, generator=generator),
        "large": torch.randn(2, 6, 16, 16, generator=generator),
        "steps": torch.tensor([3, 941]),
    }


@pytest.fixture(scope="module")
def peers(home, given):
    jobs = [
        {
            "job": "unclip",
            "name": name if exact else f"{name} as it is",
            "folder": str(home / f"{name}_folder"),
            "prompts": PROMPTS,
            "seed": SEED,
            "exact": exact,
        }
        for name in DECODERS
        for exact in (True, False)
    ]
    return outputs_of_peers(home, given, jobs)


def captions(home):
    """The conditions of the prompts."""
    clip = ClipEmbedder.load(str(home / "clip"))
    text, none = clip.encode_captions(PROMPTS), clip.encode_captions([""])
    return Condition(
        features=text.features,
        empty_features=none.features[0],
        features_mask=text.mask,
        empty_features_mask=none.mask[0],
        text_embedding=text.embedding,
        empty_text_embedding=none.embedding[0],
    )


def test_clip_gives_the_same_features_and_embeddings_of_captions(home, peers):
    condition = captions(home)
    for side, part in ((condition.without_text, slice(2)), (condition, slice(2, 4))):
        assert furthest(side.features, peers["learned.features"][part]) < 1e-5
        assert furthest(side.text_embedding, peers["learned.text_embedding"][part]) < 1e-5


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_the_decoder_samples_the_same_images_of_the_same_noise(home, given, peers, name):
    network = store.load(str(home / name))
    z = scaling().normalize(peers[f"{name}.embedding"])
    condition = replace(captions(home), image_embedding=z)
    plain, schedule = denoiser(network), network.process.schedule
    guided = with_guidance(plain, without_embedding(without_text(plain)), 3.0)
    steps = (peers[f"{name}.steps"].double() + 1) / 1000
    images = DDPM().solve(
        schedule,
        StaticThresholding().wrap(guided, schedule),
        given["noise"],
        torch.cat([steps, steps.new_zeros(1)]),
        condition,
        torch.Generator().manual_seed(SEED),
    )
    assert furthest(images, peers[f"{name}.images"]) < 1e-4
    # their tables are in fp32, in which beta_1 / (1 - alpha_1^2), by which the last step multiplies
    # x_0, is 0.9995 and not 1
    assert furthest(images, peers[f"{name} as it is.images"]) < 1e-3


def test_the_upsampler_gives_the_same_output(home, given, peers):
    network, x = store.load(str(home / "upsampler")), given["large"]
    seen = []
    network.stem.register_forward_pre_hook(lambda *_: (seen.append(1), (x,))[1])
    with torch.no_grad():
        out = network(
            x[:, :3], (given["steps"] + 1) / 1000, Condition(low_res=torch.zeros(2, 3, 8, 8))
        )
    assert seen
    assert furthest(out, peers["learned.large"]) < 1e-4
    assert peers["learned.final"].shape == (2, 16, 16, 3)


def test_a_decoder_comes_back():
    config = DECODER.model_copy(update={"timestep_offset": 1})
    state = random_weights(config)
    theirs = to_diffusers_decoder(state, config, scaling())
    again = from_diffusers_decoder(theirs, config, scaling())
    assert again.keys() == state.keys()
    assert all(torch.allclose(again[name], state[name], atol=1e-5) for name in state)
    raw = from_diffusers_decoder(theirs, config, None)
    assert all(torch.equal(raw[n], v) for n, v in state.items() if "image_embedding" not in n)
    with pytest.raises(UserError, match="missing text_proj"):
        from_diffusers_decoder(DecoderState(theirs.unet, {}), config, None)


@torch.no_grad()
def test_a_decoder_is_imported_from_its_folder(home, given, tmp_path):
    values = {
        "data.image.size": 8,
        "model.image_size": 8,
        "model.channels": 8,
        "model.multipliers": [1, 2],
        "model.depth": 1,
        "model.attention": [4],
        "model.head_width": 8,
        "model.groups": 4,
        "model.features": {"width": DIM, "projection": 10},
        "model.text_embedding": DIM,
        "model.image_embedding": {"dim": DIM, "tokens": 2},
        "model.timestep_offset": 1,
    }
    words = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    recipe = Path("recipes/karlo_decoder_64.yaml")
    folder = home / "learned_folder"
    import_weights(folder / "decoder", str(tmp_path / "in"), "diffusers", recipe, words)
    ours, again = store.load(str(home / "learned")), store.load(str(tmp_path / "in"))
    raw = torch.randn(2, DIM, generator=torch.Generator().manual_seed(3))
    condition, t = captions(home), (given["steps"] + 1) / 1000
    one = ours(given["noise"], t, replace(condition, image_embedding=scaling().normalize(raw)))
    other = again(given["noise"], t, replace(condition, image_embedding=raw))
    assert furthest(one, other) < 1e-4
    shutil.copytree(folder / "decoder", tmp_path / "alone" / "decoder")
    with pytest.raises(UserError, match=r"text_proj/.*: no such file"):
        import_weights(
            tmp_path / "alone" / "decoder", str(tmp_path / "no"), "diffusers", recipe, words
        )


def test_the_token_is_the_fast_axis_there_too():
    theirs = to_diffusers_decoder(random_weights(DECODER), DECODER, None)
    weight = theirs.projection["clip_extra_context_tokens_proj.weight"]
    assert torch.equal(weight, random_weights(DECODER)["image_embedding.tokens.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embedding": None}, "model.text_embedding"),
        ({"features": None}, "model.features.projection"),
        ({"image_embedding": {"dim": 8}}, "model.image_embedding.dim 8, model.features.width 16"),
        ({"middle_attention": False}, "model.middle_attention: false"),
        ({"epsilon": 1e-6}, "model.epsilon"),
    ],
)
def test_networks_of_another_form_are_refused_by_key(change, message):
    config = UNetConfig.model_validate({**DECODER.model_dump(), **change})
    with pytest.raises(UserError, match=message):
        decoder_settings(config)


def test_parts_that_do_not_fit_are_refused_and_nothing_is_written(home, tmp_path):
    def export(decoder, prior, upsampler):
        models = UnclipModels(str(prior), str(upsampler))
        export_model(str(decoder), tmp_path / "out", "diffusers", unclip=models)

    record = store.describe(str(home / "learned")).embeddings
    v = DECODER.process.model_copy(update={"prediction_type": "v"})
    text = ClipText(model=str(home / "clip"))
    saved(
        tmp_path / "v",
        DECODER.model_copy(update={"process": v}),
        text_encoder=text,
        embeddings=record,
    )
    other = record.model_copy(
        update={"scaling": EmbeddingScaling(kind="l2_sqrt_d", dim=DIM, samples=9)}
    )
    saved(tmp_path / "prior", PRIOR, text_encoder=text, embeddings=other)
    for words, message in (
        ((tmp_path / "v", home / "prior", home / "upsampler"), "UnCLIPScheduler has noise and x0"),
        ((home / "learned", home / "upsampler", home / "upsampler"), "takes a diffusion_prior"),
        ((home / "learned", tmp_path / "prior", home / "upsampler"), "l2_sqrt_d"),
        ((home / "learned", home / "prior", home / "clip"), "an upsampler of kind unet"),
    ):
        with pytest.raises(UserError, match=message):
            export(*words)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="needs both"):
        UnclipModels.of_options("prior", None)


def test_a_decoder_alone_is_two_networks(home, tmp_path):
    done = export_model(str(home / "learned"), tmp_path / "out", "diffusers")
    assert "decoder/ and text_proj/ load by themselves" in done.note
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"decoder", "text_proj"}
