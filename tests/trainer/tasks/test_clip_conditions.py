"""CLIP embeddings as target and as conditions of training, from a set or from the CLIP itself."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from bare import Bare
from PIL import Image
from torch import nn

from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.sets.stored_set import read_manifest
from data_pipeline.sets.write import write_manifest
from data_pipeline.stream import Stream
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.embedding_scaling import EmbeddingScaling
from mezzotint.common.errors import UserError
from mezzotint.inference.encoding.embeddings import EmbeddingOptions, encode_embeddings
from models import store
from models.clip import ClipConfig
from models.diffusion.condition import Condition
from models.diffusion.process import ProcessConfig
from models.diffusion.schedules.discrete import CosineBetasConfig, DiscreteSchedule
from models.diffusion.unet.network import UNetConfig
from models.text_source import ClipText
from trainer.recipe import load
from trainer.setup import open_inputs
from trainer.task import Step
from trainer.tasks.conditioning.captions import ClipTextCondition, TextCondition
from trainer.tasks.conditioning.clip_image import ClipImageCondition
from trainer.tasks.conditioning.embeddings import embedding_record, with_embeddings, with_scaling
from trainer.tasks.conditioning.inputs import ConditionInputs
from trainer.tasks.denoising import DenoisingConfig
from trainer.tasks.frozen_text import with_cached_features
from trainer.tasks.targets import ImageEmbeddings

CLIP = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=40, text_length=8,
    text_width=16, text_layers=1, head_width=8, embed=6,
)  # fmt: skip
LINES = {"a": ("woman pilot", "man cook"), "b": ("person pilot",), "c": ("man pilot",)}


def clip_at(where, seed):
    torch.manual_seed(seed)
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    weights, tokenizer = CLIP.build().state_dict(), Tokenizer.train(words, 40)
    store.save(str(where), CLIP, weights, card="", tokenizer=tokenizer, text_length=8)
    return str(where)


@pytest.fixture
def sets(tmp_path):
    """Images, their embeddings, and the CLIP."""
    samples = []
    for shade, (key, lines) in enumerate(LINES.items()):
        png = tmp_path / f"{key}.png"
        Image.fromarray(np.full((16, 16, 3), 60 * shade, np.uint8)).save(png)
        content = {"png": png.read_bytes(), "txt": "\n".join(lines).encode()}
        samples.append(RawSample(key, content))
    images, clip = str(tmp_path / "images"), clip_at(tmp_path / "clip", 0)
    text = {"name": "s", "licence": "CC0-1.0", "provenance": {}, "fields": {"png": "", "txt": ""}}
    write_shards(samples, images, shard_size=2, **text)
    out = str(tmp_path / "embeddings")
    encode_embeddings(DataConfig(url=images), clip, out, EmbeddingOptions(text_features=True))
    return images, out, clip


def task_of(clip, *, cached=True, drop=0.5, image_drop=0.5, captions=True, **settings):
    text = ClipTextCondition(
        kind="clip_text", encoder=ClipText(model=clip), drop=drop, cached=cached
    )
    condition = ClipImageCondition(
        kind="clip_image", drop=image_drop, captions=text if captions else None
    )
    target = ImageEmbeddings(kind="image_embeddings")
    return DenoisingConfig(kind="denoising", target=target, condition=condition, **settings)


def opened(task, url):
    return open_dataset(with_embeddings(task, with_cached_features(task, DataConfig(url=url))))


class Network(nn.Module):
    """Stands for a prior that is also given image embeddings."""

    @dataclass(frozen=True)
    class Config:
        conditioning: frozenset[str] = frozenset({"clip_image", "clip_text"})

    def __init__(self):
        super().__init__()
        self.config, self.process = self.Config(), ProcessConfig().build()
        self.scale = nn.Parameter(torch.zeros(()))
        self.seen: list[Condition] = []

    def forward(self, x, t, condition):
        self.seen.append(condition)
        return x * self.scale


def trained(task, dataset, steps=6):
    """The conditions of a few batches in training order, their captions, and the task."""
    record = embedding_record(task, dataset, None)
    network = Network()
    built = with_scaling(task, record.scaling).build(network)
    stream, batches = iter(Stream(dataset, global_batch=3, rank=0, world=1, seed=1)), []
    for number in range(steps):
        batches.append(next(stream))
        step = Step(number, torch.Generator().manual_seed(number))
        list(built.losses({"model": Bare(network)}, batches[-1], step))
    return network.seen, batches, built


def test_conditions_from_the_set_are_those_of_the_clip(sets):
    _, url, clip = sets
    cached, batches, _ = trained(task_of(clip), opened(task_of(clip), url))
    live, again, _ = trained(task_of(clip, cached=False), opened(task_of(clip, cached=False), url))
    assert [batch.captions for batch in batches] == [batch.captions for batch in again]
    for one, other in zip(cached, live, strict=True):
        for name in (
            *("features", "features_mask", "text_embedding", "image_embedding"),
            *("empty_features", "empty_features_mask", "empty_text_embedding", "null_embedding"),
        ):
            ours, theirs = getattr(one, name), getattr(other, name)
            assert torch.allclose(ours.float(), theirs.float(), atol=1e-5), name


def test_all_of_a_caption_is_dropped_together_and_apart_from_the_image(sets):
    _, url, clip = sets
    seen, _, _ = trained(task_of(clip), opened(task_of(clip), url), steps=20)
    captions, images = [], []
    for one in seen:
        alike = [
            (one.features == one.empty_features).flatten(1).all(1),
            (one.features_mask == one.empty_features_mask).all(1),
            (one.text_embedding == one.empty_text_embedding).all(1),
        ]
        assert torch.equal(alike[0], alike[2])
        assert bool((alike[1] | ~alike[0]).all())
        captions.append(alike[0])
        images.append(one.null_embedding)
    both = torch.stack([torch.cat(captions), torch.cat(images)])
    assert {tuple(pair) for pair in both.T.tolist()} == {
        (one, other) for one in (False, True) for other in (False, True)
    }


def test_drop_rates_are_those_of_the_settings_and_independent():
    rows, scaling = 4096, EmbeddingScaling(kind="l2_sqrt_d", dim=4, samples=1)
    task = ClipImageCondition(
        kind="clip_image", drop=0.1, captions=TextCondition(kind="text", drop=0.5), scaling=scaling
    )
    batch = Batch(
        ("k",) * rows, ("",) * rows, text=torch.ones(rows, 3, dtype=torch.long),
        arrays={"image_embedding": torch.ones(rows, 4)},
    )  # fmt: skip
    inputs = ConditionInputs(batch, torch.zeros(rows, 3), Network(), torch.Generator(), None, None)
    found = task.train_condition(Condition(), inputs)
    image, text = found.null_embedding, ~found.text.any(1)
    for dropped, share in ((image, 0.1), (text, 0.5), (image & text, 0.05)):
        deviation = (share * (1 - share) / rows) ** 0.5
        assert abs(float(dropped.float().mean()) - share) < 3 * deviation
    evaluated = task.eval_condition(Condition(), inputs)
    assert evaluated.null_embedding is None
    assert bool(evaluated.text.all())


def test_noise_on_embeddings_is_of_training_alone_and_of_all_levels_up_to_its_own():
    rows, scaling = 2048, EmbeddingScaling(kind="l2_sqrt_d", dim=64, samples=1)
    task = ClipImageCondition(kind="clip_image", drop=0, noise=0.3, scaling=scaling)
    batch = Batch(("k",) * rows, ("",) * rows, arrays={"image_embedding": torch.ones(rows, 64)})
    inputs = ConditionInputs(batch, torch.zeros(rows, 3), Network(), torch.Generator(), None, None)
    noise = task.train_condition(Condition(), inputs).image_embedding - 1
    assert abs(float(noise.square().mean()) - 0.3**2 / 3) < 0.001
    levels = noise.std(dim=1)
    assert float(levels.min()) < 0.01
    assert 0.27 < float(levels.max()) < 0.4
    evaluated = task.eval_condition(Condition(), inputs).image_embedding
    assert torch.allclose(evaluated, torch.ones(rows, 64))


def test_a_network_of_noisy_embeddings_gets_them_at_random_levels_which_it_is_told():
    rows, scaling = 4096, EmbeddingScaling(kind="l2_sqrt_d", dim=16, samples=1)
    network = Network()
    network.config = UNetConfig.model_validate(
        {"image_size": 8, "attention": [], "image_embedding": {"dim": 16, "tokens": 0, "noise": {}}}
    )
    task = ClipImageCondition(kind="clip_image", drop=0.25, scaling=scaling)
    task.check(network)
    batch = Batch(("k",) * rows, ("",) * rows, arrays={"image_embedding": torch.ones(rows, 16)})
    inputs = ConditionInputs(batch, torch.zeros(rows, 3), network, torch.Generator(), None, None)
    found = task.train_condition(Condition(), inputs)
    level = found.embedding_level
    assert int(level.min()) < 5
    assert int(level.max()) > 994
    assert abs(float(level.double().mean()) - 499.5) < 3 * 1000 / (12 * rows) ** 0.5
    at = DiscreteSchedule(betas=CosineBetasConfig()).at((level.double() + 1) / 1000)
    noise = (found.image_embedding - at.alpha[:, None]) / at.sigma[:, None]
    assert abs(float(noise.mean())) < 3 / (rows * 16) ** 0.5
    assert abs(float(noise.square().mean()) - 1) < 3 * (2 / (rows * 16)) ** 0.5
    dropped = float(found.null_embedding.double().mean())
    assert abs(dropped - 0.25) < 3 * (0.25 * 0.75 / rows) ** 0.5
    evaluated = task.eval_condition(Condition(), inputs)
    assert not bool(evaluated.embedding_level.any())
    assert float((evaluated.image_embedding - 1).abs().max()) < 0.1
    with pytest.raises(UserError, match=r"task\.condition\.noise: .*model\.image_embedding\.noise"):
        task.model_copy(update={"noise": 0.3}).check(network)


def test_noisy_embeddings_have_the_mean_of_their_set_again():
    # diffusers' noise_image_embeddings: scale, add noise, unscale
    mean, std = (0.5, -1.0, 2.0, 0.0), (0.1, 0.2, 0.5, 1.0)
    scaling = EmbeddingScaling(kind="mean_std", dim=4, samples=9, mean=mean, std=std)
    network = Network()
    network.config = UNetConfig.model_validate(
        {"image_size": 8, "attention": [], "image_embedding": {"dim": 4, "tokens": 0, "noise": {}}}
    )
    task = ClipImageCondition(kind="clip_image", drop=0.0, scaling=scaling)
    z = torch.randn((6, 4), generator=torch.Generator().manual_seed(0))
    batch = Batch(("k",) * 6, ("",) * 6, arrays={"image_embedding": z})
    rng = torch.Generator().manual_seed(1)
    inputs = ConditionInputs(batch, torch.zeros(6, 3), network, rng, None, None)
    found = task.train_condition(Condition(), inputs)
    again = torch.Generator().manual_seed(1)
    level = torch.randint(1000, (6,), generator=again)
    noise = torch.randn((6, 4), generator=again)
    at = DiscreteSchedule(betas=CosineBetasConfig()).at((level.double() + 1) / 1000)
    mean, std = torch.tensor(mean), torch.tensor(std)
    noised = at.alpha[:, None] * (z - mean) / std + at.sigma[:, None] * noise
    assert torch.equal(found.embedding_level, level)
    torch.testing.assert_close(found.image_embedding, (noised * std + mean).float())


def test_guidance_drops_the_image_and_the_caption(sets):
    _, url, clip = sets
    _, batches, built = trained(task_of(clip), opened(task_of(clip), url), steps=1)
    clean, condition = built.evaluation(batches[0], torch.Generator())
    network = built.parts()["model"]
    network.seen.clear()
    built.sample(network, torch.zeros_like(clean), condition, torch.Generator())
    with_all, without = network.seen[:2]
    assert with_all.null_embedding is None
    assert bool(without.null_embedding.all())
    assert torch.equal(without.text_embedding[0], condition.empty_text_embedding)


def test_the_target_is_normalised_by_the_statistics_of_the_set(sets):
    _, url, clip = sets
    dataset, task = opened(task_of(clip), url), task_of(clip)
    _, _, built = trained(task, dataset, steps=1)
    clean, condition = built.evaluation(dataset.batch(range(3)), torch.Generator())
    assert torch.allclose(clean.mean(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(clean.std(0, correction=0), torch.ones(6), atol=1e-5)
    assert torch.equal(condition.image_embedding, clean)


def test_embeddings_of_another_clip_are_refused(sets, tmp_path):
    _, url, clip = sets
    task = task_of(clip)
    dataset = opened(task, url)
    other = ClipText(model=clip_at(tmp_path / "other", 1), digest="2" * 64)
    with pytest.raises(UserError, match=r"task\.condition\.encoder: is the CLIP 222222222222"):
        embedding_record(task, dataset, other)
    own = ClipText(model=clip, digest=store.describe(clip).digest)
    assert embedding_record(task, dataset, own) == read_manifest(url).embeddings


def test_a_model_that_training_starts_from_keeps_its_normalisation(sets, tmp_path, caplog):
    _, url, clip = sets
    record = read_manifest(url).embeddings
    other = EmbeddingScaling(kind="openai_17.2", dim=6, samples=3)
    start, weights = str(tmp_path / "start"), CLIP.build().state_dict()
    before = record.model_copy(update={"scaling": other})
    store.save(start, CLIP, weights, card="", embeddings=before)
    assert store.describe(start).embeddings == before
    task = task_of(clip, start=start)
    dataset = opened(task, url)
    assert embedding_record(task, dataset, None).scaling == other
    assert "are normalised as it was trained, by openai_17.2" in caplog.text
    condition = task.condition.model_copy(update={"scaling": record.scaling})
    stated = task.model_copy(update={"condition": condition})
    assert embedding_record(stated, dataset, None) == record
    before = before.model_copy(update={"digest": "3" * 64})
    store.save(start, CLIP, weights, card="", embeddings=before)
    with pytest.raises(UserError, match=r"but task\.start is of the embeddings of 333333333333"):
        embedding_record(task, dataset, None)


PRIOR = """
name: prior
steps: 1
batch: 3
model: {{kind: diffusion_prior, dim: 6, features: {{width: 16}}, length: 8, width: 16, layers: 1,
  heads: 2}}
task: {{kind: denoising, target: {{kind: image_embeddings}},
  condition: {{kind: clip_text, encoder: {{kind: clip, model: {clip}}}, cached: true}}}}
data: {{url: {url}}}
optimizer: {{lr: {{peak: 1.0e-3}}}}
"""


def test_a_recipe_of_a_prior_reads_a_set_that_fits(sets, tmp_path):
    _, url, clip = sets
    path = tmp_path / "prior.yaml"
    path.write_text(PRIOR.format(url=url, clip=clip))
    inputs = open_inputs(load(path))
    assert inputs.embeddings == read_manifest(url).embeddings
    assert inputs.text_encoder.digest == store.describe(clip).digest
    clean, condition = inputs.task.evaluation(inputs.dataset.batch(range(3)), torch.Generator())
    assert (clean.shape, condition.features.shape) == ((3, 6), (3, 8, 16))
    other = clip_at(tmp_path / "other", 1)
    for override, message in (
        ("model.dim=5", r"model\.dim is 5, and embeddings of .* have 6 values; set model\.dim=6"),
        ("model.features.width=8", r"set model\.features\.width=16"),
        (f"task.condition.encoder.model={other}", "were made by another text encoder"),
    ):
        with pytest.raises(UserError, match=message):
            open_inputs(load(path, [override]))
    live = ["task.condition.cached=false", f"task.condition.encoder.model={other}"]
    with pytest.raises(UserError, match=r"task\.condition\.encoder: is the CLIP"):
        open_inputs(load(path, live))


DECODER = """
name: decoder
steps: 1
batch: 3
model: {{kind: unet, image_size: 16, channels: 16, multipliers: [1, 2], depth: 1, attention: [8],
  head_width: 8, groups: 8, image_embedding: {{dim: 6}}}}
task: {{kind: denoising, condition: {{kind: clip_image}}}}
data: {{url: {images}, join: [{url}], image: {{size: 16}}}}
optimizer: {{lr: {{peak: 1.0e-3}}}}
"""


def test_a_recipe_of_a_decoder_joins_the_embeddings_to_the_images(sets, tmp_path):
    images, url, _ = sets
    path = tmp_path / "decoder.yaml"
    path.write_text(DECODER.format(images=images, url=url))
    inputs = open_inputs(load(path))
    record = read_manifest(url).embeddings
    assert inputs.embeddings == record
    batch = inputs.dataset.batch(range(3))
    clean, condition = inputs.task.evaluation(batch, torch.Generator())
    assert clean.shape == (3, 3, 16, 16)
    wanted = record.scaling.normalize(batch.array("image_embedding"))
    assert torch.equal(condition.image_embedding, wanted)
    with pytest.raises(UserError, match=r"set model\.image_embedding\.dim=6"):
        open_inputs(load(path, ["model.image_embedding.dim=5"]))
    with pytest.raises(UserError, match=r"no such array although data\.arrays names"):
        open_inputs(load(path, ["data.join=[]"]))


def test_an_array_that_no_clip_is_known_of_is_refused(sets):
    _, url, clip = sets
    manifest = read_manifest(url)
    write_manifest(url, manifest.model_copy(update={"embeddings": None}))
    task = task_of(clip, captions=False)
    with pytest.raises(UserError, match="but does not say which CLIP made it"):
        embedding_record(task, opened(task, url), None)
