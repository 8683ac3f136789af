"""What is known of open_clip checkpoints on disk, and reading them."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file

from mezzotint.common.errors import UserError
from models.pretrained.lookup import identify, text_width
from models.pretrained.network import PretrainedClip
from models.pretrained.settings import OpenClipCheckpoint, OpenClipImages
from models.torchvision_compat import ensure_torchvision

NAME = "mezzotint-checkpoints"
SHAPE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
HALVES = {"mean": 0.5, "std": 0.5, "interpolation": "bilinear"}
OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
BICUBIC = {**OPENAI, "interpolation": "bicubic", "resize_mode": "shortest"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of weights, with the model that they belong to."""
    root = tmp_path_factory.mktemp("weights")
    ensure_torchvision()
    import open_clip

    (root / f"{NAME}.json").write_text(json.dumps(SHAPE))
    open_clip.add_model_config(root)
    torch.manual_seed(0)
    model = open_clip.create_model(NAME, load_weights=False).eval()
    save_file(model.state_dict(), root / "made.safetensors")
    return root, model


@pytest.fixture
def weights(folder, tmp_path):
    """The path of a copy of the weights, alone in a folder."""
    return shutil.copy(folder[0] / "made.safetensors", tmp_path / "made.safetensors")


def images(weights, **settings):
    return OpenClipImages.model_validate(
        {"architecture": NAME, "checkpoint": str(weights), **settings}
    )


def hub(weights, preprocess=None, **network):
    """Write the settings file of the Hugging Face hub beside the weights."""
    tree = {"model_cfg": SHAPE | network, "preprocess_cfg": preprocess or {}}
    weights.with_name("open_clip_config.json").write_text(json.dumps(tree))


def test_what_nothing_says_is_asked_for(weights):
    with pytest.raises(UserError) as refusal:
        identify(images(weights))
    assert "made.safetensors: nothing says with which mean, std, interpolation it was" in str(
        refusal.value
    )
    assert "open_clip_config.json" in str(refusal.value)
    with pytest.raises(UserError, match="with which quick_gelu, mean, std, interpolation") as asked:
        identify(images(weights, architecture="ViT-L-14"))
    assert "openai, laion400m_e31, laion400m_e32, laion2b_s32b_b82k" in str(asked.value)
    assert "true of openai, metaclip_400m, metaclip_fullcc, dfn2b)" in str(asked.value)
    with pytest.raises(UserError, match="with which interpolation it was"):
        identify(images(weights, mean=0.5, std=0.5))


@pytest.mark.parametrize(
    ("architecture", "tag", "mean", "interpolation", "mode", "quick_gelu"),
    [
        ("ViT-L-14", "laion2b_s32b_b82k", 0.5, "bicubic", "shortest", False),
        ("ViT-L-14", "openai", 0.48145466, "bicubic", "shortest", True),
        ("ViT-L-14-quickgelu", "OpenAI", 0.48145466, "bicubic", "shortest", True),
        ("ViT-H-14", "dfn5b", 0.48145466, "bicubic", "squash", True),
        ("ViT-B-32", "laion2b-s34b-b79k", 0.48145466, "bicubic", "shortest", False),
        ("PE-Core-B-16", "meta", 0.5, "bilinear", "squash", False),
        ("MobileCLIP-S1", "datacompdr", 0.0, "bilinear", "shortest", False),
    ],
)
def test_a_tag_says_everything(weights, architecture, tag, mean, interpolation, mode, quick_gelu):
    known = identify(images(weights, architecture=architecture, tag=tag))
    assert known.quick_gelu == quick_gelu
    assert known.preprocessing is not None
    assert known.preprocessing.mean[0] == mean
    assert known.preprocessing.interpolation == interpolation
    assert known.preprocessing.resize_mode == mode


def test_every_tag_with_a_tokenizer_of_open_clip_is_complete(weights):
    import open_clip

    from models.pretrained.lookup import model_config, needs_hugging_face

    for architecture, tag in open_clip.list_pretrained():
        if not needs_hugging_face(model_config(architecture), architecture):
            assert identify(images(weights, architecture=architecture, tag=tag)).preprocessing


def test_an_unknown_tag_is_refused_with_those_there_are(weights):
    with pytest.raises(UserError, match=r"no weights 'laion' of ViT-L-14-quickgelu; it has openai"):
        identify(images(weights, architecture="ViT-L-14-quickgelu", tag="laion"))
    with pytest.raises(UserError, match=f"no weights 'openai' of {NAME}; it has none"):
        identify(images(weights, tag="openai"))
    hub(weights)
    with pytest.raises(UserError, match="tag: openai is one of an architecture; set architecture"):
        identify(images(weights, architecture=None, tag="openai"))


def test_settings_of_the_recipe_come_before_the_tag(weights):
    known = identify(
        images(weights, architecture="ViT-L-14", tag="openai", mean=0.25, quick_gelu=False)
    )
    assert known.preprocessing is not None
    assert known.preprocessing.mean == (0.25, 0.25, 0.25)
    assert known.preprocessing.std[0] == OPENAI["std"][0]
    assert not known.quick_gelu


def test_the_file_beside_the_weights_says_everything(weights):
    hub(weights, {**HALVES, "resize_mode": "squash", "size": 32, "mode": "RGB"}, quick_gelu=True)
    for architecture in (NAME, None):
        known = identify(images(weights, architecture=architecture))
        assert known.quick_gelu
        assert known.preprocessing is not None
        assert known.preprocessing.model_dump() == {
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "interpolation": "bilinear",
            "resize_mode": "squash",
            "fill_color": 0,
        }
    clip = PretrainedClip(images(weights, architecture=None))
    assert clip.image_size == (32, 32)
    assert clip.tokens.length == 12
    named = weights.rename(weights.with_name("open_clip_model.safetensors"))
    assert identify(images(named.parent, architecture=None)).weights == named


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"open_clip_config\.json: is no settings file of open_clip \("),
        ('{"preprocess_cfg": {}}', "model_cfg"),
        ('{"model_cfg": {}, "preprocess_cfg": {"mean": "x"}}', r"preprocess_cfg\.mean"),
        (
            json.dumps({"model_cfg": SHAPE | {"embed_dim": 32}}),
            f"has embed_dim 32, where {NAME} has 16; name the architecture",
        ),
        (
            json.dumps({"model_cfg": SHAPE | {"text_cfg": SHAPE["text_cfg"] | {"layers": 9}}}),
            r"has text_cfg\.layers 9",
        ),
    ],
)
def test_a_file_beside_the_weights_that_cannot_be_theirs_is_refused(weights, content, message):
    weights.with_name("open_clip_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        identify(images(weights))


def test_tag_and_file_that_contradict_each_other_are_refused(weights):
    import open_clip

    shape = open_clip.get_model_config("ViT-L-14")
    tree = {"model_cfg": shape, "preprocess_cfg": OPENAI}
    weights.with_name("open_clip_config.json").write_text(json.dumps(tree))
    wanted = {"architecture": "ViT-L-14", "tag": "laion2b_s32b_b82k"}
    with pytest.raises(UserError, match=r"has mean \(0\.48.* laion2b_s32b_b82k has \(0\.5, "):
        identify(images(weights, **wanted))
    known = identify(images(weights, **wanted, mean=0.5, std=0.5))
    assert known.preprocessing is not None
    assert known.preprocessing.mean == (0.5, 0.5, 0.5)


def test_of_a_text_tower_only_the_activation_is_asked_for(weights):
    source = OpenClipCheckpoint(architecture="ViT-L-14", checkpoint=str(weights))
    with pytest.raises(UserError, match="nothing says with which quick_gelu it was trained"):
        identify(source)
    assert identify(source.model_copy(update={"tag": "openai"})).quick_gelu
    assert text_width(source.model_copy(update={"quick_gelu": False})) == 768


def test_quick_gelu_changes_both_towers_as_in_open_clip(weights, folder):
    import open_clip

    quick = open_clip.create_model(NAME, load_weights=False, force_quick_gelu=True).eval()
    quick.load_state_dict(folder[1].state_dict())
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=rng) * 2 - 1
    for model, quick_gelu in ((folder[1], False), (quick, True)):
        clip = PretrainedClip(images(weights, **HALVES, quick_gelu=quick_gelu))
        tokens = clip.tokens(["a cat", "a photo of a dog"])
        assert torch.equal(tokens, open_clip.get_tokenizer(NAME)(["a cat", "a photo of a dog"]))
        with torch.no_grad():
            wanted = model.encode_text(tokens, normalize=True)
            assert torch.allclose(clip.encode_text(tokens), wanted, atol=1e-6)
            wanted = model.encode_image(image, normalize=True)  # (x + 1) / 2 with halves is x
            assert torch.allclose(clip.encode_image(image), wanted, atol=1e-5)
            raw = model.encode_image(image), model.encode_text(tokens)
            assert torch.allclose(clip.project_image(image), raw[0], atol=1e-5)
            assert torch.allclose(clip.project_text(tokens), raw[1], atol=1e-6)
            captions = clip.encode_captions(tokens)
        assert torch.allclose(captions.embedding, raw[1], atol=1e-6)
        assert torch.equal(captions.features, clip.token_features(tokens))
        assert captions.mask.sum(1).tolist() == [4, 7]  # with begin and end
        assert not any(parameter.requires_grad for parameter in clip.parameters())
        assert not clip.training


def test_weights_of_openai_are_not_taken_as_ones_with_gelu(weights, folder, tmp_path):
    state = {name: value.clone() for name, value in folder[1].state_dict().items()}
    numbers = {"input_resolution": 32, "context_length": 12, "vocab_size": 49408}
    torch.save(
        state | {key: torch.tensor(each) for key, each in numbers.items()}, tmp_path / "w.pt"
    )
    with pytest.raises(UserError, match=r"w\.pt: its keys say that it is OpenAI's, .* tag: openai"):
        PretrainedClip(images(tmp_path / "w.pt", **HALVES))
    clip = PretrainedClip(images(tmp_path / "w.pt", **HALVES, quick_gelu=True))
    assert clip.known.quick_gelu
    (tmp_path / "vit.OpenAI").mkdir()
    inside = shutil.copy(weights, tmp_path / "vit.OpenAI" / "w.safetensors")
    with pytest.raises(UserError, match="its path says that it is OpenAI's"):
        PretrainedClip(images(inside, **HALVES))
    PretrainedClip(images(inside, **HALVES, quick_gelu=False))


def test_an_architecture_of_quick_gelu_is_not_built_without(weights):
    with pytest.raises(UserError, match="quick_gelu is false, but ViT-L-14-quickgelu"):
        identify(images(weights, **HALVES, architecture="ViT-L-14-quickgelu", quick_gelu=False))


def test_a_torchscript_archive_is_recognised_and_the_advice_works(folder, tmp_path):
    path = tmp_path / "ViT-tiny.pt"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(
            folder[1], {"encode_image": torch.zeros(1, 3, 32, 32)}, check_trace=False
        )
        torch.jit.save(traced, path)
    with pytest.raises(UserError, match=r"ViT-tiny\.pt: is a TorchScript archive") as refusal:
        PretrainedClip(images(path, **HALVES))
    code = str(refusal.value).split('python -c "')[1].split('"`')[0]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
    clip = PretrainedClip(images(tmp_path / "ViT-tiny.state.pt", **HALVES))
    assert torch.equal(clip.clip.text_projection, folder[1].text_projection)


def test_other_files_are_refused_without_unpickling_them(folder, tmp_path):
    (tmp_path / "text.pt").write_bytes(b"no weights")
    (tmp_path / "text.safetensors").write_bytes(b"no weights")
    torch.save(folder[1], tmp_path / "module.pt")
    torch.save(folder[1].state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (
        ("text.pt", "not a torch checkpoint of torch 1.6 or later"),
        ("old.pt", "not a torch checkpoint of torch 1.6 or later"),
        ("text.safetensors", "not a checkpoint; it cannot be read"),
        ("module.pt", "not a checkpoint of tensors alone; where it was made, save the state dict"),
        ("list.pt", "not a checkpoint; save a state dict"),
        ("nowhere.pt", "no such file"),
    ):
        with pytest.raises(UserError, match=rf"{name}: {message}") as refusal:
            PretrainedClip(images(tmp_path / name, **HALVES))
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="has no architecture 'hf-hub:x/y'"):
        identify(images(tmp_path / "text.pt", architecture="hf-hub:x/y"))


def test_forms_of_a_state_dict_are_read(folder, tmp_path):
    state = folder[1].state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "ddp.bin")
    save_file(state, tmp_path / "safe.bin")
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "half.pt")
    for name in ("plain.pt", "ddp.bin", "safe.bin"):
        clip = PretrainedClip(images(tmp_path / name, **HALVES))
        assert torch.equal(clip.clip.text_projection, state["text_projection"])
    half = PretrainedClip(images(tmp_path / "half.pt", **HALVES))
    assert half.clip.text_projection.dtype == torch.float32


def test_a_weight_that_is_not_finite_is_named(folder, tmp_path):
    state = {name: value.clone() for name, value in folder[1].state_dict().items()}
    state["visual.proj"][3, 2] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"nan\.safetensors.*visual\.proj"):
        PretrainedClip(images(tmp_path / "nan.safetensors", **HALVES))


@pytest.mark.parametrize("key", ["positional_embedding", "visual.positional_embedding"])
def test_positions_of_another_length_are_not_resized(folder, tmp_path, key):
    state = {name: value.clone() for name, value in folder[1].state_dict().items()}
    state[key] = torch.cat([state[key], state[key]])
    save_file(state, tmp_path / "longer.safetensors")
    with pytest.raises(UserError, match=r"longer\.safetensors: not a checkpoint of .*size mism"):
        PretrainedClip(images(tmp_path / "longer.safetensors", **HALVES))


def test_captions_that_are_cut_keep_the_end_and_what_is_lost_is_known(weights):
    clip = PretrainedClip(images(weights, **HALVES))
    short, long = "a cat", "one two three four five six seven eight nine ten eleven twelve"
    tokens = clip.tokens([short, long])
    assert tokens[1, -1] == tokens[0].max() == 49407
    assert clip.tokens.lost(short) == ""
    assert clip.tokens.lost(long) == "eleven twelve"
