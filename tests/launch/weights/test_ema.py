"""`mezzotint average` on snapshots made by hand."""

import json

import pytest
import torch

from mezzotint.common.embedding_scaling import EmbeddingRecord, EmbeddingScaling
from mezzotint.common.latent_scaling import LatentScaling
from models import store
from models.autoencoders.discriminator import PatchDiscriminatorConfig
from models.first_stage import FirstStage
from trainer.averages.post_hoc_ema import EmaProfile
from trainer.averages.snapshots import write_snapshot

CONFIG = PatchDiscriminatorConfig(width=8, layers=1)
EMBEDDINGS = EmbeddingRecord(
    model="clip",
    digest="1" * 64,
    scaling=EmbeddingScaling(kind="l2_sqrt_d", dim=4, samples=2),
)
STAGE = FirstStage(model="kl", digest="2" * 64, scaling=LatentScaling(mean=0.0, std=1.0, samples=2))


@pytest.fixture
def run(tmp_path):
    """A finished run of two updates, with a snapshot of each: weights of 1, then of 4."""
    model = CONFIG.build()
    about = {"embeddings": EMBEDDINGS, "first_stage": STAGE}
    store.save(str(tmp_path / "run" / "model"), CONFIG, model.state_dict(), card="# card", **about)
    names = dict(model.named_parameters())
    for update, value in ((1, 1.0), (2, 4.0)):
        for sigma_rel in (0.05, 0.1):
            # weights of 1 and then 4 make an average of 1 at update 1; at update 2 of 4 - 3 w
            share = float(EmaProfile(sigma_rel, update).weights(1, 2)[0])
            level = 1.0 if update == 1 else value - 3 * share
            write_snapshot(
                tmp_path / "run" / "averages",
                EmaProfile(sigma_rel, update),
                {name: torch.full(weight.shape, level) for name, weight in names.items()},
            )
    return tmp_path / "run"


def test_a_model_of_another_width_is_combined_from_snapshots(mezzotint, run):
    outcome = mezzotint("average", run, "--sigma-rel", "0.2", "--json")
    assert outcome.code == 0, outcome.err
    made = json.loads(outcome.out)
    assert made["snapshots"] == 4
    assert made["error"] < 1e-9
    assert made["model"] == str(run / "model-0.2-2")
    model, before = store.load(made["model"]), store.load(str(run / "model"))
    level = 4.0 - 3 * float(EmaProfile(0.2, 2).weights(1, 2)[0])
    for weight in model.parameters():
        assert torch.allclose(weight, torch.full_like(weight, level), atol=1e-5)
    info = store.describe(made["model"])
    assert (info.embeddings, info.first_stage) == (EMBEDDINGS, STAGE)
    kept = dict(before.named_buffers())
    assert all(torch.equal(value, kept[name]) for name, value in model.named_buffers())
    said = mezzotint("average", run, "--sigma-rel", "0.1", "--update", "1", "--out", run / "early")
    assert "early: EMA of relative width 0.1 at update 1, from 2 snapshots" in said.out


def test_missing_snapshots_and_runs_are_named(refused, run, tmp_path):
    assert "--sigma-rel: 0.3 must lie between 0 and 0.28" in refused(
        "average", run, "--sigma-rel", "0.3"
    )
    empty = tmp_path / "empty"
    assert "holds no snapshots of averages" in refused("average", empty, "--sigma-rel", "0.1")
