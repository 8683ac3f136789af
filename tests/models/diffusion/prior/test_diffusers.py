"""`PriorTransformer`: its outputs here, its weights back, and its two faults not taken over."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mezzotint.common.embedding_scaling import EmbeddingScaling
from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.prior.diffusers import (
    from_diffusers_prior,
    prior_config,
    prior_settings,
    to_diffusers_prior,
)
from models.diffusion.prior.network import DiffusionPriorConfig

# of 1,000 steps counted from 0, their 3 and 941 are ours 4 and 942
TIMES = torch.tensor([4, 942]) / 1000
with safe_open(Path(__file__).parent / "peers/prior.safetensors", "pt") as file:
    GIVEN = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    SHAPES = json.loads(file.metadata()["shapes"])
    SETTINGS = json.loads(file.metadata()["settings"])
SETTINGS = {"_class_name": "PriorTransformer", **SETTINGS}
CONFIG = DiffusionPriorConfig.model_validate(prior_config(SETTINGS, "config.json"))


def weights():
    """As in `make_peers.py`."""
    return {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(place)) * 0.5
        for place, (name, shape) in enumerate(sorted(SHAPES.items()))
    }


def network():
    model = CONFIG.build().eval()
    model.load_state_dict(from_diffusers_prior(weights(), CONFIG))
    return model


def output(model, mask):
    condition = Condition(
        features=GIVEN["features"], features_mask=mask, text_embedding=GIVEN["text_embedding"]
    )
    return model(GIVEN["x"], TIMES, condition)


@pytest.mark.parametrize("grad", [False, True], ids=["sampling", "training"])
def test_outputs_are_those_of_the_peer_under_its_causal_mask(grad):
    model, ones = network(), torch.ones_like(GIVEN["mask"])
    with torch.set_grad_enabled(grad):
        for mask, name in ((GIVEN["mask"], "padded"), (ones, "full"), (None, "full")):
            away = (output(model, mask) - GIVEN[name]).abs().max()
            assert float(away.detach()) < 1e-5
    assert float(GIVEN["full"].abs().max()) > 0.2


def test_the_peer_without_a_mask_is_another_network():
    assert float((GIVEN["none"] - GIVEN["full"]).abs().max()) > 0.01


def test_its_weights_and_settings_come_back():
    back = to_diffusers_prior(network().state_dict(), CONFIG)
    given = weights()
    assert back.keys() == given.keys()
    assert all(torch.equal(back[key], value) for key, value in given.items())
    assert prior_settings(CONFIG) == {
        key: value for key, value in SETTINGS.items() if key in prior_settings(CONFIG)
    }


def test_its_embedding_is_the_sample_by_mean_and_deviation():
    model = network()
    sample = GIVEN["padded"] * model.std + model.mean
    torch.testing.assert_close(sample, GIVEN["embedding"])


def test_deviations_of_0_of_a_new_network_are_read_as_1():
    new = {**weights(), "clip_std": torch.zeros(1, 12), "clip_mean": torch.zeros(1, 12)}
    assert bool((from_diffusers_prior(new, CONFIG)["std"] == 1).all())


@pytest.mark.parametrize("kind", ["openai_17.2", "mean_std", "l2_sqrt_d"])
def test_exported_statistics_undo_the_normalisation(kind):
    measured = {}
    if kind == "mean_std":
        measured = {"mean": tuple(range(12)), "std": tuple(range(1, 13))}
    scaling = EmbeddingScaling(kind=kind, dim=12, samples=3, **measured)
    found = to_diffusers_prior(network().state_dict(), CONFIG, scaling)
    vector = GIVEN["x"]
    wanted = scaling.denormalize(vector)
    torch.testing.assert_close(vector * found["clip_std"] + found["clip_mean"], wanted)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_in_type", "layer"),
        ("added_emb_type", None),
        ("encoder_hid_proj_type", None),
        ("embedding_proj_dim", 16),
        ("additional_embeddings", 0),
    ],
)
def test_other_networks_of_the_class_are_refused_by_key(key, value):
    with pytest.raises(UserError, match=f"config.json: {key}: {value!r} has no network here"):
        prior_config({**SETTINGS, key: value}, "config.json")


def test_tokens_of_another_width_than_embeddings_are_refused():
    config = CONFIG.model_copy(update={"dim": 24})
    with pytest.raises(UserError, match="width is 12 and model"):
        prior_settings(config)
