"""Outputs of diffusers' `PriorTransformer`, kept beside this file.

In an environment of its own:

    pip install diffusers==0.42.0 torch safetensors
    python make_peers.py

Weights are drawn by `sampled` from their place among the sorted names, which the tests repeat; so
only inputs, outputs, names and shapes are kept. fp32, at the steps 3 and 941 of 1,000, from 0.
"""

import json
from pathlib import Path

import torch
from diffusers import PriorTransformer
from safetensors.torch import save_file

HOME = Path(__file__).parent
STEPS = torch.tensor([3, 941])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sampled(shapes):
    """Weights by name: normal, with standard deviation 0.5."""
    return {
        name: noise(*shape, seed=place) * 0.5
        for place, (name, shape) in enumerate(sorted(shapes.items()))
    }


@torch.no_grad()
def main():
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        embedding_dim=12,
        num_embeddings=5,
    ).eval()
    shapes = {name: tuple(value.shape) for name, value in prior.state_dict().items()}
    prior.load_state_dict(sampled(shapes))
    given = {
        "x": noise(2, 12, seed=100),
        "features": noise(2, 5, 12, seed=101),
        "text_embedding": noise(2, 12, seed=102),
    }

    def call(mask):
        return prior(
            given["x"],
            STEPS,
            given["text_embedding"],
            given["features"],
            mask,
        ).predicted_image_embedding

    found = {
        **given,
        "mask": MASK,
        "padded": call(MASK),
        "full": call(torch.ones_like(MASK)),
        "none": call(None),
        "embedding": prior.post_process_latents(call(MASK)),
    }
    note = {"shapes": json.dumps(shapes), "settings": json.dumps(dict(prior.config))}
    save_file(found, HOME / "prior.safetensors", metadata=note)


if __name__ == "__main__":
    main()
