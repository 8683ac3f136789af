"""The reference for the loss of the prior."""

import pytest
from torch.nn import functional as F

from models.autoregressive.prior import PriorLosses, weighted


@pytest.fixture
def prior_loss():
    """Weighted sum, text and image cross-entropy of logits, from torch's own function."""

    def loss(logits, text, codes, text_weight=1 / 8):
        text_loss = F.cross_entropy(logits.text.float().flatten(0, 1), text.flatten())
        image_loss = F.cross_entropy(logits.image.float().flatten(0, 1), codes.flatten())
        total = weighted(PriorLosses(text_loss, image_loss), text_weight)
        return total, text_loss, image_loss

    return loss
