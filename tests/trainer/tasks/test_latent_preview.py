"""Previews of a run on latents: decoded, and not clamped before."""

import torch
from pydantic import TypeAdapter

from data_pipeline.batch import Batch
from mezzotint.common.latent_scaling import LatentScaling
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.config import ModelConfig
from models.first_stage import FirstStage
from trainer.tasks.denoising import DenoisingConfig
from trainer.tasks.targets import LatentDecoder

SCALING = LatentScaling(mean=0.5, std=2.0, samples=3)
UNET = {
    **{"kind": "unet", "image_size": 8, "image_channels": 4, "channels": 8, "multipliers": (1,)},
    **{"depth": 1, "attention": (), "head_width": 4, "groups": 4},
}


def test_previews_of_latents_are_decoded_and_not_clamped(tmp_path):
    pyramid = {"kind": "resnet", "width": 4, "multipliers": [1, 2], "blocks": 1, "groups": 2}
    stage = AutoencoderConfig.model_validate(
        {"image_size": 16, "channels": 4, "pyramid": pyramid, "bottleneck": {"kind": "identity"}}
    )
    network = stage.build().eval()
    store.save(str(tmp_path / "stage"), stage, network.state_dict(), card="tiny")
    digest = store.describe(str(tmp_path / "stage")).digest
    model = TypeAdapter(ModelConfig).validate_python(UNET).build()
    target = {"kind": "latents", "scaling": SCALING.model_dump()}
    task = DenoisingConfig.model_validate({"kind": "denoising", "target": target}).build(model)
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    batch = Batch(keys=("a", "b"), captions=("", ""), arrays={"latents": latents})
    assert task.preview({}, batch, torch.Generator().manual_seed(1)) == {}
    record = FirstStage(model=str(tmp_path / "stage"), digest=digest, scaling=SCALING)
    task.decoder = LatentDecoder(record)
    found = task.preview({}, batch, torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(found["real"], network.decode(latents))
        assert found["samples"].shape == (2, 3, 16, 16)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        x = task.sample(
            model, noise, task.evaluation(batch, torch.Generator())[1], torch.Generator()
        )
    assert float(x.abs().max()) > 1
    torch.testing.assert_close(found["samples"], network.decode(x * 2 + 0.5))
