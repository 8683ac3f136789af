"""Text features read from a derived set condition a network as the encoder itself does."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.sets.stored_set import read_set
from data_pipeline.shards import unlisted_files
from data_pipeline.stream import Stream
from data_pipeline.text.tokenizer import Tokenizer
from launch.data.derive_text import TextOptions, derive_text_set, text_source
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.text_features import EMPTY_FEATURES
from models import store
from models.clip import ClipConfig
from models.diffusion.condition import Condition
from models.nn.initialization import materialize
from models.text_source import ClipText, T5Text
from trainer.recipe import load
from trainer.setup import open_inputs
from trainer.task import Step

CLIP = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=40, text_length=6,
    text_width=128, text_layers=1, head_width=16, embed=8,
)  # fmt: skip
LINES = {"a": ("woman pilot", "man cook"), "b": ("person pilot",), "c": ("man pilot", "woman cook")}


def clip_at(where, seed):
    torch.manual_seed(seed)
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    weights, tokenizer = CLIP.build().state_dict(), Tokenizer.train(words, 40)
    store.save(str(where), CLIP, weights, card="", tokenizer=tokenizer, text_length=6)
    return str(where)


def images_at(where, lines=None):
    png = where.parent / "one.png"
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(png)
    samples = [
        RawSample(key, {"png": png.read_bytes(), "txt": "\n".join(each).encode()})
        for key, each in (lines or LINES).items()
    ]
    text = {"name": "s", "licence": "CC0-1.0", "provenance": {}, "fields": {"png": "", "txt": ""}}
    write_shards(samples, str(where), shard_size=2, **text)
    return str(where)


@pytest.fixture
def sets(tmp_path):
    """Images, features of their captions, and the encoder."""
    clip, images = clip_at(tmp_path / "clip", 0), images_at(tmp_path / "images")
    assert derive_text_set(TextOptions(images, str(tmp_path / "text"), clip, as_json=True))
    return images, str(tmp_path / "text"), clip


def inputs_of(sets, *overrides):
    images, text, clip = sets
    keys = ["model.image_size=16", "model.channels=16", "model.multipliers=[1,2]", "batch=3"]
    keys += ["model.head_width=8", "model.groups=8", "data.image.size=16", "micro_batch=null"]
    keys += ["data.select=[]", "task.condition.drop=0.5", f"data.url={images}"]
    keys += [f"data.join=[{text}]", f"task.condition.encoder.model={clip}"]
    return open_inputs(load("recipes/emoji_caption_clip.yaml", [*keys, *overrides]))


@dataclass(frozen=True)
class Recorded:
    """A bare engine that keeps the conditions."""

    module: nn.Module
    seen: list[Condition] = field(default_factory=list)

    def __call__(self, x, t, cond):
        self.seen.append(cond)
        return self.module(x, t, cond)


def conditions(inputs):
    """Of four batches in training order, with the captions that were read."""
    (model,) = inputs.task.parts().values()
    for _ in materialize(model, 0, device=torch.device("cpu")):
        pass
    engine = Recorded(model)
    stream, captions = iter(Stream(inputs.dataset, global_batch=3, rank=0, world=1, seed=1)), []
    for number in range(4):
        batch = next(stream)
        captions += batch.captions
        step = Step(number, torch.Generator().manual_seed(number))
        list(inputs.task.losses({"model": engine}, batch, step))
    return captions, engine.seen


def test_conditions_are_those_of_the_encoder_and_the_same_captions_are_dropped(sets):
    captions, exact = conditions(inputs_of(sets, "task.condition.cached=false"))
    again, cached = conditions(inputs_of(sets, "task.condition.cached=true"))
    assert captions == again
    assert {"woman pilot", "man cook"} <= set(captions)
    dropped = 0
    for one, other in zip(exact, cached, strict=True):
        assert torch.allclose(one.features, other.features, atol=1e-5)
        assert torch.allclose(one.empty_features, other.empty_features, atol=1e-5)
        for row, same in zip(one.features, other.features, strict=True):
            empty = torch.equal(row, one.empty_features)
            assert empty == torch.equal(same, other.empty_features)
            dropped += empty
    assert 0 < dropped < len(captions)


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.processes
def test_any_number_of_processes_and_workers_gives_the_same_features(sets, tmp_path):
    images, _, clip = sets
    for count in (1, 2):
        out = str(tmp_path / str(count))
        options = TextOptions(images, out, clip, "fp32", 1, "cpu", count, as_json=True)
        assert derive_text_set(options)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
    batches = []
    for workers in (0, 2):
        keys = ("task.condition.cached=true", "data.cache_in_memory=false")
        inputs = inputs_of(sets, *keys, f"data.workers={workers}")
        stream = iter(Stream(inputs.dataset, global_batch=3, rank=0, world=1, seed=1))
        batches.append([next(stream) for _ in range(3)])
    for one, other in zip(*batches, strict=True):
        assert one.captions == other.captions
        assert torch.equal(one.array("text_features"), other.array("text_features"))


def test_half_precision_and_a_finished_set(sets, tmp_path):
    images, text, clip = sets
    before = (tmp_path / "text" / "manifest.json").stat().st_mtime_ns
    derive_text_set(TextOptions(images, text, clip, as_json=True))
    assert (tmp_path / "text" / "manifest.json").stat().st_mtime_ns == before
    derive_text_set(TextOptions(images, text, clip, "fp16", as_json=True))
    dataset = inputs_of(sets, "task.condition.cached=true").dataset
    assert dataset.text_features.record.dtype == "fp16"
    assert unlisted_files(read_set(text), storage.sizes(text)) == []
    assert dataset.batch(range(3)).array("text_features").dtype == torch.float32


def test_features_that_do_not_fit_are_refused(sets, tmp_path):
    images, text, _ = sets
    cached = "task.condition.cached=true"
    other = clip_at(tmp_path / "other", 1)
    with pytest.raises(UserError, match=r"text: its text features were made by another text enc"):
        inputs_of(sets, cached, f"task.condition.encoder.model={other}")
    with pytest.raises(UserError, match=r"has no text features; make a set of them with"):
        inputs_of((images, images, sets[2]), cached)
    with pytest.raises(UserError, match=r"data.text.captions: .* kept of single captions"):
        inputs_of(sets, cached, "data.text={captions: joined}")
    changed = images_at(tmp_path / "changed", {**LINES, "b": ("person cook",)})
    with pytest.raises(UserError, match=r"b.text_features.npy: .* which were changed since"):
        inputs_of((changed, text, sets[2]), cached).dataset.batch(range(3))
    (tmp_path / "text" / EMPTY_FEATURES).write_bytes(b"no")
    with pytest.raises(UserError, match=r"empty_text_features.npy: does not match the manifest"):
        inputs_of(sets, cached)


def test_how_an_encoder_is_named(tmp_path):
    assert text_source("runs/clip/model") == ClipText(model="runs/clip/model")
    (tmp_path / "spiece.model").write_bytes(b"")
    assert text_source(str(tmp_path)) == T5Text(directory=str(tmp_path))
    stated = "{kind: t5, directory: t5, length: 77}"
    assert text_source(stated) == T5Text(directory="t5", length=77)
    with pytest.raises(UserError, match=r"--text-encoder: .*; write it as task.condition.encoder"):
        text_source("{kind: t6}")
