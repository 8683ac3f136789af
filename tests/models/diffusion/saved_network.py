"""Networks on disk, untrained but not blank."""

import torch

from models import store


def saved(directory, config, *, spread=0.1, card="tiny", **records) -> str:
    """The model directory of new weights plus noise of a standard deviation."""
    torch.manual_seed(0)
    network = config.build()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * spread)
    store.save(str(directory), config, network.state_dict(), card=card, **records)
    return str(directory)
