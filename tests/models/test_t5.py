"""T5's encoder against transformers', whose features lie in peers/, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.common.errors import UserError
from models import t5
from models.t5 import T5Settings, load_t5, relative_buckets

PEERS = Path(__file__).parent / "peers"
SHAPE = {
    **{"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3},
    **{"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
}
KINDS = {"plain": "relu", "gated": "gated-gelu"}


def formula(count, index):
    """The formula of peers/make_t5.py."""
    numbers = torch.arange(count, dtype=torch.float64)
    return (0.7 * torch.sin(numbers * 1.7 + (index + 1) * numbers.sqrt())).float()


def tokens():
    """Captions of 30, 7, 1 and no tokens."""
    rows = (torch.arange(120).view(4, 30) * 7) % 39 + 1
    return rows * (torch.arange(30) < torch.tensor([30, 7, 1, 0])[:, None])


def weights(kind):
    """Under the published names, with a decoder's beside them."""
    tree = {"model_type": "t5", **SHAPE, "feed_forward_proj": KINDS[kind]}
    network = T5Settings.model_validate(tree).build()
    names = t5._published(network)
    shapes = {theirs: network.get_parameter(ours).shape for ours, theirs in names.items()}
    state = {
        name: formula(shapes[name].numel(), index).view(shapes[name])
        for index, name in enumerate(sorted(shapes))
    }
    return tree, state


@pytest.fixture
def directory(tmp_path):
    """Writes a published directory and says where."""

    def write(kind="plain", *, changes=None, without=()):
        tree, state = weights(kind)
        more = {"architectures": ["T5EncoderModel"], "dropout_rate": 0.1, **(changes or {})}
        (tmp_path / "config.json").write_text(json.dumps({**tree, **more}))
        state["decoder.final_layer_norm.weight"] = torch.ones(16)
        kept = {name: value for name, value in state.items() if name not in without}
        save_file(kept, tmp_path / "model.safetensors")
        (tmp_path / "spiece.model").write_bytes(b"pieces")
        return str(tmp_path)

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers(directory, kind):
    network = load_t5(directory(kind))
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    wanted = load_file(PEERS / "t5.safetensors")[kind]
    found = network.token_features(tokens())
    assert torch.allclose(found[:3], wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[3], torch.zeros(30, 16))


def test_padding_is_not_read_and_has_no_features(directory):
    network = load_t5(directory())
    short, long = network.token_features(tokens()[1:2, :7]), network.token_features(tokens()[1:2])
    assert torch.allclose(long[:, :7], short, atol=1e-6)
    assert not long[:, 7:].any()


def test_buckets_are_single_near_by_and_logarithmic_far_away():
    offset = torch.tensor([-200, -12, -5, -4, -3, -2, -1, 0, 1, 2, 5, 11, 200])
    # of 8 buckets 4 look back: offsets 0 and 1 alone, then 2 to 4 and the rest up to 12 and beyond
    assert relative_buckets(offset, 8, 12).tolist() == [3, 3, 3, 2, 2, 2, 1, 0, 5, 6, 7, 7, 7]


def test_weights_in_several_files_are_found_by_their_index(directory, tmp_path):
    whole = load_t5(directory("gated")).token_features(tokens())
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    half = len(state) // 2
    files = {"a.safetensors": [*state][:half], "b.safetensors": [*state][half:]}
    for name, keys in files.items():
        save_file({key: state[key] for key in keys}, tmp_path / name)
    index = {"weight_map": {key: name for name, keys in files.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load_t5(str(tmp_path)).token_features(tokens()), whole)


def test_the_digest_names_settings_weights_and_pieces(directory, tmp_path):
    first = t5.digest(directory())
    assert first == t5.digest(directory(changes={"dropout_rate": 0.5}))
    (tmp_path / "spiece.model").write_bytes(b"others")
    assert t5.digest(str(tmp_path)) != first
    assert t5.digest(directory("gated")) != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "umt5"}, "model_type"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj"),
        ({"num_heads": 0}, "num_heads"),
        ({"d_ff": 25}, r"layer\.1\.DenseReluDense\.wi\.weight is missing or has another shape"),
    ],
)
def test_another_network_is_refused_by_its_key(directory, changes, message):
    with pytest.raises(UserError, match=message):
        load_t5(directory(changes=changes))


def test_what_is_missing_is_named(directory, tmp_path):
    with pytest.raises(UserError, match=r"config\.json: cannot be read; give a directory with"):
        load_t5(str(tmp_path / "nowhere"))
    lost = "encoder.block.1.layer.0.layer_norm.weight"
    with pytest.raises(UserError, match=f"{lost} is missing"):
        load_t5(directory(without=(lost,)))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_t5(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="weights are read from safetensors only"):
        load_t5(str(tmp_path))
    (tmp_path / "spiece.model").unlink()
    with pytest.raises(UserError, match=r"spiece\.model: cannot be read"):
        t5.pieces(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is not that of a T5 encoder"):
        load_t5(str(tmp_path))
