"""The model directory."""

import hashlib
import json

import fsspec
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mezzotint.common import files
from mezzotint.common.errors import UserError
from models import store
from models.autoencoders.dvae import DVAEConfig
from models.clip import ClipConfig

CONFIG = DVAEConfig(image_size=16, vocab=16, width=8, groups=2, patch=2, initial_width=8)


def built(config=CONFIG, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build()


def save(directory, model=None, **options):
    model = built() if model is None else model
    store.save(str(directory), model.config, model.state_dict(), card="# Card\n", **options)
    return model


def test_a_model_comes_back_as_it_was_in_evaluation_mode(tmp_path):
    model = save(tmp_path / "m", tokenizer=b"pieces", text_length=12)
    loaded = store.load(str(tmp_path / "m"))
    assert not loaded.training
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    info = store.describe(str(tmp_path / "m"))
    assert info.config == CONFIG
    assert info.text_length == 12
    assert info.tokenizer_sha256 == hashlib.sha256(b"pieces").hexdigest()
    assert store.tokenizer_bytes(str(tmp_path / "m")) == b"pieces"
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "tokenizer.model",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_loading_leaves_the_global_generator_alone(tmp_path):
    save(tmp_path / "m")
    before = torch.get_rng_state()
    store.load(str(tmp_path / "m"))
    assert torch.equal(before, torch.get_rng_state())


class Allocations(TorchDispatchMode):
    """Bytes of CPU tensors made inside, and the operators that draw random numbers for one."""

    def __init__(self):
        super().__init__()
        self.bytes, self.random = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        before = {
            each.untyped_storage()._cdata for each in tree_leaves(args) if isinstance(each, Tensor)
        }
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.device.type == "cpu":
                if torch.Tag.nondeterministic_seeded in func.tags:
                    self.random.append(func)
                if each.untyped_storage()._cdata not in before:
                    self.bytes += each.nbytes
        return result


CLIP = ClipConfig(
    image_size=8,
    patch=4,
    vision_width=16,
    vision_layers=1,
    text_vocab=9,
    text_length=3,
    text_width=16,
    text_layers=1,
    head_width=8,
    embed=8,
)


@pytest.mark.parametrize("config", [CONFIG, CLIP], ids=["dvae", "clip"])
def test_loading_takes_the_weights_as_they_are_read_and_initialises_none(tmp_path, config):
    model = save(tmp_path / "m", built(config))
    with Allocations() as made:
        loaded = store.load(str(tmp_path / "m"))
    assert not made.random
    weights = {id(weight): weight.nbytes for weight in loaded.parameters()}
    # the weights as read from the file, and small tables
    assert made.bytes <= 1.1 * sum(weights.values()) + 200
    assert len({weight.data_ptr() for weight in loaded.parameters()}) == len(weights)
    for name, value in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), value)
    assert all(weight.requires_grad for weight in loaded.parameters())


def test_a_model_is_loaded_in_the_wanted_precision(tmp_path):
    model = save(tmp_path / "m")
    loaded = store.load(str(tmp_path / "m"), dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight.bfloat16())


def test_loading_under_another_default_device_gives_weights_on_the_one_asked_for(tmp_path):
    save(tmp_path / "m")
    with torch.device("meta"):
        loaded = store.load(str(tmp_path / "m"), device="cpu")
    assert {weight.device.type for weight in loaded.parameters()} == {"cpu"}


def test_the_digest_names_config_and_weights(tmp_path):
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save(tmp_path / name, built(seed=seed))
        digests.append(store.describe(str(tmp_path / name)).digest)
    assert digests[0] == digests[1] != digests[2]
    larger = CONFIG.model_copy(update={"image_size": 32})
    store.save(str(tmp_path / "d"), larger, built().state_dict(), card="")
    assert store.describe(str(tmp_path / "d")).digest != digests[0]


def test_a_clip_keeps_no_buffer_that_it_rebuilds(tmp_path):
    model = built(CLIP)
    weights = {**model.state_dict(), **dict(model.named_buffers())}
    assert len(weights) > len(model.state_dict())
    store.save(str(tmp_path / "m"), CLIP, weights, card="")
    tokens = torch.tensor([[3, 4, 0]])
    loaded = store.load(str(tmp_path / "m"))
    assert torch.equal(loaded.encode_text(tokens), model.eval().encode_text(tokens))


def test_a_flipped_bit_is_refused_by_the_name_of_the_file(tmp_path):
    save(tmp_path / "m", tokenizer=b"pieces")
    for name, read in (
        ("model.safetensors", store.load),
        ("tokenizer.model", store.tokenizer_bytes),
    ):
        path = tmp_path / "m" / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(UserError, match=rf"{name}: does not match config\.json"):
            read(str(tmp_path / "m"))


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        store.load(str(tmp_path))
    save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        store.load(str(tmp_path / "m"))
    with pytest.raises(UserError, match="holds no tokenizer"):
        store.tokenizer_bytes(str(tmp_path / "m"))


def test_a_config_that_says_something_unknown_is_refused_by_its_key(tmp_path):
    save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    tree = json.loads(path.read_text())
    tree["model"]["width"] = -3
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"config\.json: model\.dvae\.width"):
        store.describe(str(tmp_path / "m"))
    path.write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        store.describe(str(tmp_path / "m"))


def test_a_file_name_that_leads_elsewhere_is_refused(tmp_path):
    save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    tree = json.loads(path.read_text())
    tree["weights"][0]["file"] = "../other.safetensors"
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"weights\.0\.file"):
        store.load(str(tmp_path / "m"))


def test_weights_of_another_model_are_refused_before_anything_is_written(tmp_path):
    weights = built().state_dict()
    name = next(iter(weights))
    with pytest.raises(UserError, match="missing"):
        store.save(
            str(tmp_path / "m"), CONFIG, {k: v for k, v in weights.items() if k != name}, card=""
        )
    with pytest.raises(UserError, match=r"unknown \['extra'\]"):
        store.save(str(tmp_path / "m"), CONFIG, {**weights, "extra": weights[name]}, card="")
    with pytest.raises(UserError, match="has shape"):
        store.save(str(tmp_path / "m"), CONFIG, {**weights, name: weights[name][:1]}, card="")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_directory_whole(tmp_path, monkeypatch):
    save(tmp_path / "m")
    before = store.describe(str(tmp_path / "m")).digest

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        save(tmp_path / "m", built(seed=1))
    assert store.describe(str(tmp_path / "m")).digest == before
    store.load(str(tmp_path / "m"))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_saving_again_replaces_the_directory(tmp_path):
    save(tmp_path / "m", tokenizer=b"pieces")
    model = save(tmp_path / "m", built(seed=1))
    loaded = store.load(str(tmp_path / "m"))
    name = next(iter(model.state_dict()))
    assert torch.equal(loaded.state_dict()[name], model.state_dict()[name])
    assert not (tmp_path / "m" / "tokenizer.model").exists()


def test_large_weights_are_cut_into_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_MAX_FILE_BYTES", 4000)
    model = save(tmp_path / "m")
    names = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    loaded = store.load(str(tmp_path / "m"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_a_model_can_live_at_a_url():
    model = save("memory://store-test/m", tokenizer=b"pieces")
    loaded = store.load("memory://store-test/m")
    name = next(iter(model.state_dict()))
    assert torch.equal(loaded.state_dict()[name], model.state_dict()[name])
    save("memory://store-test/m", built(seed=1))
    assert store.describe("memory://store-test/m").tokenizer_sha256 is None
    fsspec.filesystem("memory").rm("/store-test", recursive=True)
