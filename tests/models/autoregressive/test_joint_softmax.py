"""The two heads are the paper's one softmax over text and image with the other kind masked."""

import torch
from torch.nn import functional as F

from models.autoregressive.prior import PriorConfig

CONFIG = PriorConfig(text_vocab=11, text_length=4, image_vocab=13, grid=(3, 3), width=16, heads=1)


def test_one_joint_softmax_with_the_other_kind_masked_gives_the_same_loss_and_gradients(prior_loss):
    torch.manual_seed(0)
    model = CONFIG.build()
    rng = torch.Generator().manual_seed(1)
    text = torch.randint(11, (2, 4), generator=rng)
    codes = torch.randint(13, (2, 9), generator=rng)
    weights = list(model.parameters())
    loss = prior_loss(model(text, codes), text, codes)[0]
    gradients = torch.autograd.grad(loss, weights)

    x = torch.cat([model.embed_text(text), model.embed_image(codes[:, :-1], 0)], dim=1)
    matrix = torch.cat([model.text_head.weight, model.image_head.weight])
    bias = torch.cat([model.text_head.bias, model.image_head.bias])
    logits = F.linear(model.run(x), matrix, bias)
    reads_text = torch.arange(13)[:, None] < 4
    is_text = torch.arange(11 + 13) < 11
    logits = logits.masked_fill(reads_text != is_text, -torch.inf).transpose(1, 2)
    parts = F.cross_entropy(logits[:, :, :4], text), F.cross_entropy(logits[:, :, 4:], codes + 11)
    joint = (parts[0] + 7 * parts[1]) / 8
    assert torch.allclose(joint, loss, rtol=1e-6)
    for one, other in zip(gradients, torch.autograd.grad(joint, weights), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
