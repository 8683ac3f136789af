"""A pretrained open_clip checkpoint in the place of a CLIP model directory."""

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.text.tokenizer import Tokenizer
from evaluation.config import TextToImageConfig
from mezzotint.common.errors import UserError
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.config import OpenClip
from mezzotint.inference.encoding.embeddings import (
    EmbeddingOptions,
    encode_embeddings,
    text_source_of,
)
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.load import load_generator
from models import frozen_text, store
from models.autoencoders.dvae import DVAEConfig
from models.autoregressive.prior import PriorConfig
from models.text_source import identity
from models.torchvision_compat import ensure_torchvision

CAPTIONS = ["woman pilot", "a man who cooks", "judge"]
NAME, WIDER = "mezzotint-tiny", "mezzotint-wider"
HALVES = {"mean": 0.5, "std": 0.5, "interpolation": "bilinear"}


def shape(width):
    text = {"context_length": 16, "vocab_size": 49408, "width": width, "heads": 1, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights of a small architecture added to open_clip; another is wider."""
    root = tmp_path_factory.mktemp("open_clip")
    ensure_torchvision()
    import open_clip
    from safetensors.torch import save_file

    for name, width in ((NAME, 16), (WIDER, 32)):
        (root / f"{name}.json").write_text(json.dumps(shape(width)))
    open_clip.add_model_config(root)
    torch.manual_seed(0)
    save_file(open_clip.create_model(NAME, load_weights=False).state_dict(), root / "w.safetensors")
    return root / "w.safetensors"


def source(path, **changes):
    tree = {"kind": "open_clip", "architecture": NAME, "checkpoint": str(path)}
    return tree | HALVES | changes


def configured(clip, system=None):
    return TextToImageConfig.model_validate(
        {
            "kind": "text_to_image",
            "name": "x",
            "system": system or {"kind": "cascade", "base": "base", "upsampler": "upsampler"},
            "reference": {"url": "set"},
            "clip": clip,
        }
    )


def test_a_checkpoint_embeds_pictures_and_captions_with_its_own_tokenizer(checkpoint):
    import open_clip

    clip = ClipEmbedder.load(configured(source(checkpoint)).clip)
    tokens = clip.text(CAPTIONS)
    assert torch.equal(tokens, open_clip.get_tokenizer(NAME)(CAPTIONS))
    assert tokens.shape == (3, 16)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 20, 20, 3), generator=rng, dtype=torch.uint8)
    images, texts = clip.images(pixels), clip.texts(tuple(CAPTIONS))
    assert torch.allclose(texts, clip.model.encode_text(tokens), atol=1e-6)
    for features in (images, texts):
        assert features.shape == (3, 16)
        assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)


def test_a_protocol_names_the_file_its_hash_and_all_that_its_features_depend_on(checkpoint):
    clip = ClipEmbedder.load(OpenClip.model_validate(source(checkpoint)))
    protocol = dict(clip.protocol())
    assert protocol.pop("digest") == clip.digest
    assert protocol == {
        "kind": "open_clip",
        "architecture": NAME,
        "checkpoint": str(checkpoint),
        "tag": None,
        "quick_gelu": False,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "resize_mode": "shortest",
        "fill_color": 0,
        "image_size": [32, 32],
        "text_length": 16,
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    "changes", [{"mean": 0.4}, {"std": 0.4}, {"interpolation": "bicubic"}, {"quick_gelu": True}]
)
def test_other_preprocessing_is_another_encoder(checkpoint, changes):
    one = ClipEmbedder.load(OpenClip.model_validate(source(checkpoint)))
    other = ClipEmbedder.load(OpenClip.model_validate(source(checkpoint, **changes)))
    assert one.digest != other.digest
    pixels = torch.arange(3 * 20 * 20 * 3, dtype=torch.uint8).view(3, 20, 20, 3)
    assert not torch.allclose(one.images(pixels), other.images(pixels), atol=1e-4)


def test_a_checkpoint_ranks_the_candidates_of_the_prior(checkpoint, tmp_path):
    text = {"text_vocab": 40, "text_length": 6}
    sizes = {"image_vocab": 16, "grid": (4, 4), "width": 16, "layers": 1, "heads": 2}
    dvae = DVAEConfig(image_size=16, vocab=16, width=8, groups=2, patch=2, initial_width=8)
    save(tmp_path / "dvae", dvae)
    save(tmp_path / "prior", PriorConfig(**sizes, **text), Tokenizer.train(CAPTIONS, 40))
    system = {
        "kind": "dalle",
        "prior": str(tmp_path / "prior"),
        "dvae": str(tmp_path / "dvae"),
        "ranker": source(checkpoint),
        "candidates": 2,
    }
    config = configured(source(checkpoint), system)
    generator = load_generator(config.system, precision="fp32")
    request = GenerationRequest(tuple(map(Prompt, CAPTIONS)), number=2)
    result = generator.generate(request)
    clip = ClipEmbedder.load(config.clip)
    images = clip.images(result.images.flatten(0, 1)).view(3, 2, -1)
    wanted = torch.einsum("bnd,bd->bn", images, clip.texts(CAPTIONS))
    # the ranker sees images before they are rounded to 8 bits
    assert torch.allclose(result.scores, wanted, atol=0.01)
    assert generator.protocol()["ranker"] == clip.protocol()
    assert generator.protocol()["digests"]["ranker"] == clip.digest


def save(directory, config, tokenizer=None):
    torch.manual_seed(0)
    store.save(
        str(directory),
        config,
        config.build().state_dict(),
        card="tiny",
        tokenizer=tokenizer,
        text_length=6 if tokenizer else None,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "/nowhere/w.safetensors"}, r"^/nowhere/w\.safetensors: no such file"),
        ({"architecture": "ViT-nothing"}, "no architecture 'ViT-nothing'"),
        ({"architecture": "ViT-B-16-SigLIP"}, "'ViT-B-16-SigLIP' takes a tokenizer from Hugging"),
        ({"architecture": WIDER}, rf"w\.safetensors: not a checkpoint of {WIDER}; give the archi"),
    ],
)
def test_a_checkpoint_that_is_missing_or_does_not_fit_is_refused_in_one_line(
    checkpoint, changes, message
):
    with pytest.raises(UserError, match=message) as refusal:
        ClipEmbedder.load(configured(source(checkpoint, **changes)).clip)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_a_checkpoint_of_another_depth_is_refused_in_one_line(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint)
    kept = {name: each for name, each in weights.items() if "resblocks" not in name}
    save_file(kept, tmp_path / "shallow.safetensors")
    with pytest.raises(UserError, match=r"shallow\.safetensors: not a checkpoint of") as refusal:
        ClipEmbedder.load(configured(source(tmp_path / "shallow.safetensors")).clip)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"pretrained": "openai"}, "pretrained"), ({"kind": "clip"}, "kind")],
)
def test_a_mapping_with_a_wrong_key_is_refused_with_that_key_alone(checkpoint, changes, key):
    with pytest.raises(ValidationError) as refusal:
        configured(source(checkpoint, **changes))
    assert [fault["loc"] for fault in refusal.value.errors()] == [("clip", "open_clip", key)]
    system = {"kind": "dalle", "prior": "p", "dvae": "d", "ranker": source(checkpoint, **changes)}
    with pytest.raises(ValidationError) as refusal:
        configured("clip", system)
    assert [fault["loc"][-1] for fault in refusal.value.errors()] == [key]


def test_a_string_is_a_model_directory_as_before():
    config = configured("runs/clip/model")
    assert config.clip == "runs/clip/model"
    assert TextToImageConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_set_is_embedded_by_a_checkpoint_at_its_size(checkpoint, tmp_path):
    clip = OpenClip.model_validate(source(checkpoint))
    shades = [np.full((40, 30, 3), shade, np.uint8) for shade in (10, 200, 90)]
    shades[0][:8] = 255  # cut off
    samples = []
    for index, shade in enumerate(shades):
        content = io.BytesIO()
        Image.fromarray(shade).save(content, "PNG")
        caption = CAPTIONS[index].encode()
        samples.append(RawSample(f"{index}", {"png": content.getvalue(), "txt": caption}))
    images, out = str(tmp_path / "images"), str(tmp_path / "out")
    text = {"name": "s", "licence": "CC0-1.0", "provenance": {}, "fields": {"png": "", "txt": ""}}
    write_shards(samples, images, shard_size=3, **text)
    kept = EmbeddingOptions("openai_17.2", text_features=True)
    manifest = encode_embeddings(DataConfig(url=images), clip, out, kept)
    record, embedder = manifest.embeddings, ClipEmbedder.load(clip)
    weights = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (record.digest, record.weights, record.model) == (
        *(embedder.digest, weights, str(checkpoint)),
    )
    described = frozen_text.describe(text_source_of(clip)).source
    assert (described.digest, manifest.text_features.encoder) == (
        *(record.text_digest, identity(described)),
    )
    names = ("image_embedding", "text_embedding", "text_tokens")
    batch = open_dataset(DataConfig(url=out, arrays=names)).batch(range(3))
    found = embedder.encode_captions(CAPTIONS)
    assert torch.allclose(batch.array("text_embedding"), found.embedding, atol=1e-5)
    assert batch.array("text_tokens").tolist() == found.mask.sum(1).tolist()
    plain = torch.from_numpy(np.stack([np.full((32, 32, 3), 200, np.uint8)]))
    assert torch.allclose(
        batch.array("image_embedding")[1:2], embedder.project_images(plain), atol=1e-5
    )
