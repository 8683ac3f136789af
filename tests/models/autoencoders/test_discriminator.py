"""The patch discriminator."""

import torch

from models.autoencoders.discriminator import PatchDiscriminatorConfig


def test_a_score_depends_on_its_own_image_only():
    torch.manual_seed(0)
    model = PatchDiscriminatorConfig(width=8, layers=2).build()
    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together, alone = model(image), model(image[:1])
    assert together.shape[:2] == (4, 1)
    assert torch.allclose(together[:1], alone, atol=1e-6)
