"""Diffusion networks told features of captions by a frozen encoder: trained, kept, drawn with."""

import io
import json
from dataclasses import dataclass, field

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import nn

from data_pipeline.batch import Batch
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.errors import UserError
from models import frozen_text, store
from models.clip import ClipConfig
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_text
from models.diffusion.process import denoiser
from models.t5 import T5Settings
from models.text_source import ClipText
from trainer.recipe import load
from trainer.rng import drop_rows
from trainer.setup import check, check_text_encoder
from trainer.task import Step

RECIPE = "recipes/emoji_caption_clip.yaml"
CLIP = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=40, text_length=6,
    text_width=128, text_layers=1, head_width=16, embed=8,
)  # fmt: skip
CAPTIONS = ("woman pilot", "man cook", "person pilot", "man pilot")
SMALL = (
    *("model.image_size=16", "model.channels=16", "model.multipliers=[1,2]"),
    *("model.head_width=8", "model.groups=8", "data.image.size=16", "task.condition.drop=0.5"),
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clip(tmp_path):
    torch.manual_seed(0)
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    where, weights = str(tmp_path / "clip"), CLIP.build().state_dict()
    tokenizer = Tokenizer.train(words, 40)
    store.save(where, CLIP, weights, card="tiny", tokenizer=tokenizer, text_length=6)
    return where


@pytest.fixture
def recipe(clip):
    def read(*overrides):
        return load(RECIPE, [*SMALL, f"task.condition.encoder.model={clip}", *overrides])

    return read


def batch():
    image = torch.rand(4, 3, 16, 16, generator=rng(1)) * 2 - 1
    return Batch(keys=CAPTIONS, captions=CAPTIONS, image=image)


@dataclass(frozen=True)
class Listens:
    """A bare engine that keeps what its part is told."""

    module: nn.Module
    seen: list[Condition] = field(default_factory=list)

    def __call__(self, x, t, cond):
        self.seen.append(cond)
        return self.module(x, t, cond)


def test_a_step_is_told_features_and_some_of_them_are_those_of_nothing(recipe, clip):
    loaded = recipe()
    torch.manual_seed(0)
    task = loaded.task.build(loaded.model.build())
    (model,) = task.parts().values()
    engine = Listens(model)
    (loss,) = task.losses({"model": engine}, batch(), Step(0, rng(5)))
    loss.value.backward()
    (cond,) = engine.seen
    reader = frozen_text.load(ClipText(model=clip), lambda style, content, name: Tokenizer(content))
    features, empty = reader(CAPTIONS), reader([""])[0]
    assert torch.equal(cond.empty_features, empty)
    assert torch.equal(cond.features, drop_rows(features, empty, 0.5, rng(5)))
    dropped = [torch.equal(each, empty) for each in cond.features]
    assert 0 < sum(dropped) < 4
    assert not cond.features.requires_grad
    assert not [name for name in model.state_dict() if "clip" in name or "token" in name]
    assert all(weight.grad is not None for weight in model.parameters())
    assert set(task.preview({"model": model}, batch(), rng())) == {"real", "samples"}


@pytest.fixture
def t5(tmp_path):
    """A T5 as published, with drawn weights and a sentencepiece model of its style."""
    settings = {
        **{"model_type": "t5", "vocab_size": 30, "d_model": 12, "d_kv": 4, "d_ff": 16},
        **{"num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu"},
    }
    network = T5Settings.model_validate(settings).build()
    names = {f"encoder.block.0.{theirs}": ours for ours, theirs in BLOCK.items()} | {
        "shared.weight": "token.weight",
        "encoder.final_layer_norm.weight": "norm.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "bias.weight",
    }
    where, written = tmp_path / "t5", io.BytesIO()
    where.mkdir()
    (where / "config.json").write_text(json.dumps(settings))
    weights = {name: network.get_parameter(ours).detach() for name, ours in names.items()}
    save_file(weights, where / "model.safetensors")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CAPTIONS), model_writer=written, vocab_size=30, minloglevel=2,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (where / "spiece.model").write_bytes(written.getvalue())
    return str(where)


BLOCK = {
    f"blocks.0.{ours}.weight": f"layer.{theirs}.weight"
    for ours, theirs in {
        "attention_norm": "0.layer_norm",
        "forward_norm": "1.layer_norm",
        **{f"attention.{name}": f"0.SelfAttention.{name}" for name in "qkvo"},
        **{f"feed_forward.{name}": f"1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")},
    }.items()
}


def test_a_t5_on_disk_takes_a_clips_place(recipe, t5):
    words = f"task.condition.encoder={{kind: t5, directory: {t5}, length: 9}}"
    loaded = recipe(words, "model.features.width=12")
    source = check_text_encoder(loaded)
    assert len(source.digest) == 64
    task = loaded.task.build(loaded.model.build())
    engine = Listens(task.parts()["model"])
    (loss,) = task.losses({"model": engine}, batch(), Step(0, rng(5)))
    loss.value.backward()
    (cond,) = engine.seen
    assert cond.features.shape == (4, 9, 12)
    assert cond.empty_features[0].any()  # the end mark
    assert not cond.empty_features[1:].any()
    with pytest.raises(UserError, match=r"set model\.features\.width=12"):
        check(recipe(words))


def test_the_side_without_captions_reads_the_empty_one():
    features, empty = torch.randn(2, 3, 4, generator=rng()), torch.ones(3, 4)
    nothing = Condition(features=features, empty_features=empty).without_text.features
    assert torch.equal(nothing, torch.ones(2, 3, 4))
    assert not Condition(features=features).without_text.features.any()


def test_guidance_leads_away_from_the_empty_caption(recipe):
    loaded = recipe()
    torch.manual_seed(0)
    model = loaded.model.build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=rng(2)))
        features, empty = torch.randn(2, 6, 128, generator=rng()), torch.ones(6, 128)
        x, t = torch.randn(2, 3, 16, 16, generator=rng()), torch.full((2,), 0.5)
        told = denoiser(model)
        untold = without_text(told)(x, t, Condition(features=features, empty_features=empty))
        wanted = told(x, t, Condition(features=empty.expand(2, -1, -1)))
        assert torch.equal(untold.x0, wanted.x0)
        assert not torch.allclose(untold.x0, told(x, t, Condition(features=features)).x0)


def test_the_encoder_is_kept_by_its_digest(recipe, clip, tmp_path):
    loaded = recipe()
    source = check_text_encoder(loaded)
    assert source == ClipText(model=clip, digest=store.describe(clip).digest)
    weights = loaded.model.build().state_dict()
    where = tmp_path / "model"
    store.save(str(where), loaded.model, weights, card="tiny", text_encoder=source)
    assert store.describe(str(where)).text_encoder == source
    assert {path.name for path in where.iterdir()} == {
        *("config.json", "model.safetensors", "README.md")
    }
    header = json.loads((where / "config.json").read_text())
    assert header["text_encoder"]["digest"] == source.digest


def test_what_does_not_fit_is_refused_before_training(recipe, clip, tmp_path):
    check(recipe())
    with pytest.raises(UserError, match=r"set model\.features\.width=128"):
        check(recipe("model.features.width=64"))
    with pytest.raises(
        UserError, match=r"gives features, but this model is conditioned on nothing"
    ):
        check(recipe("model.features=null"))
    with pytest.raises(UserError, match="holds another text encoder"):
        check(recipe(f"task.condition.encoder.digest={'ab' * 32}"))
    with pytest.raises(UserError, match="nowhere is not a model directory"):
        check(recipe(f"task.condition.encoder.model={tmp_path / 'nowhere'}"))
    with pytest.raises(UserError, match=r"task\.condition.*encoder"):
        recipe("task.condition.encoder={kind: bert}")
