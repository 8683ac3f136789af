"""Captions as frozen encoders read them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mezzotint.common.errors import UserError
from models import frozen_text, store
from models.autoencoders.dvae import DVAEConfig
from models.clip import ClipConfig, pool_last_token
from models.text_source import ClipText, OpenClipText, T5Text

CLIP = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=40, text_length=6,
    text_width=16, text_layers=1, head_width=8, embed=8,
)  # fmt: skip
CAPTIONS = ["ab", "", "abcdefgh"]


def letters(style, content, name):
    """Stands for a tokenizer: a letter is an id."""
    assert content == b"pieces"

    def tokenize(captions, length):
        rows = [[ord(letter) - 90 for letter in caption][:length] for caption in captions]
        return torch.tensor([row + [0] * (length - len(row)) for row in rows])

    return tokenize


@pytest.fixture
def clip(tmp_path):
    torch.manual_seed(0)
    model = CLIP.build().eval()
    where = str(tmp_path / "clip")
    store.save(where, CLIP, model.state_dict(), card="tiny", tokenizer=b"pieces", text_length=6)
    return where, model


def test_a_clips_features_are_what_it_pools(clip):
    where, model = clip
    reader = frozen_text.load(ClipText(model=where), letters)
    features = reader(CAPTIONS)
    assert features.shape == (3, 6, 16)
    assert reader.width == 16
    assert not features.requires_grad
    assert not any(weight.requires_grad for weight in reader.tower.parameters())
    pooled = pool_last_token(features @ model.clip.text_projection, reader.tokens(CAPTIONS))
    wanted = model.encode_text(reader.tokens(CAPTIONS))
    assert torch.allclose(torch.nn.functional.normalize(pooled, dim=1), wanted, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reader(CAPTIONS), features)


def test_an_encoder_is_known_by_its_digest(clip):
    where, _ = clip
    known = frozen_text.describe(ClipText(model=where))
    assert (known.width, known.source.digest) == (16, store.describe(where).digest)
    assert frozen_text.load(known.source, letters).source == known.source
    store.save(where, CLIP, CLIP.build().state_dict(), card="", tokenizer=b"pieces", text_length=6)
    with pytest.raises(UserError, match=r"clip: holds another text encoder .* put that one there"):
        frozen_text.load(known.source, letters)


def test_an_open_clip_checkpoint_gives_what_it_pools(tmp_path):
    import open_clip

    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
    shape = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": text,
    }
    (tmp_path / "mezzotint-frozen.json").write_text(json.dumps(shape))
    custom = shape | {"custom_text": True}
    (tmp_path / "mezzotint-custom.json").write_text(json.dumps(custom))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    made = open_clip.create_model("mezzotint-frozen", load_weights=False).eval()
    file = str(tmp_path / "made.safetensors")
    save_file(made.state_dict(), file)
    reader = frozen_text.load(
        OpenClipText(architecture="mezzotint-frozen", checkpoint=file), letters
    )
    tokens = reader.tokens(["a cat"])
    pooled = reader(["a cat"])[0, int(tokens.argmax())] @ made.text_projection
    assert torch.allclose(pooled, made.encode_text(tokens)[0], atol=1e-5)
    for architecture, message in (
        ("nothing", "has no architecture 'nothing'"),
        ("mezzotint-custom", "has a text tower of its own kind"),
    ):
        with pytest.raises(UserError, match=message):
            frozen_text.describe(OpenClipText(architecture=architecture, checkpoint=file))
    missing = OpenClipText(architecture="mezzotint-frozen", checkpoint=str(tmp_path / "x.pt"))
    with pytest.raises(UserError, match=r"x\.pt: no such file"):
        frozen_text.describe(missing)


def test_a_model_that_reads_no_captions_is_refused(tmp_path):
    config = DVAEConfig(image_size=16, vocab=8, width=8, groups=2, patch=2, initial_width=8)
    store.save(str(tmp_path / "dvae"), config, config.build().state_dict(), card="tiny")
    with pytest.raises(UserError, match="dvae: holds a dvae; captions need a clip"):
        frozen_text.describe(ClipText(model=str(tmp_path / "dvae")))
    with pytest.raises(UserError, match="nowhere is not a model directory"):
        frozen_text.describe(ClipText(model=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        frozen_text.describe(T5Text(directory=str(tmp_path / "nowhere")))
