"""Features of published T5 encoders with weights from a formula, kept beside this file.

In an environment of its own:  pip install transformers==4.57.1 torch safetensors
                               python tests/models/peers/make_t5.py

Weights come from `formula`, which the test repeats, so that only features are kept.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

SHAPE = {
    **{"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3},
    **{"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
}
KINDS = {"plain": "relu", "gated": "gated-gelu"}
LENGTH = 30


def formula(count, index):
    """Numbers in [-0.7, 0.7] of the weight at an index of the sorted names."""
    numbers = torch.arange(count, dtype=torch.float64)
    return (0.7 * torch.sin(numbers * 1.7 + (index + 1) * numbers.sqrt())).float()


def tokens():
    """Captions of 30, 7, 1 and no tokens."""
    rows = (torch.arange(4 * LENGTH).view(4, LENGTH) * 7) % 39 + 1
    lengths = torch.tensor([LENGTH, 7, 1, 0])
    return rows * (torch.arange(LENGTH) < lengths[:, None])


def main():
    found = {}
    for kind, forward in KINDS.items():
        model = T5EncoderModel(T5Config(**SHAPE, feed_forward_proj=forward)).eval()
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for index, name in enumerate(sorted(weights)):
                weights[name].copy_(formula(weights[name].numel(), index).view_as(weights[name]))
            ids = tokens()[:3]
            mask = (ids != 0).long()
            found[kind] = model(ids, attention_mask=mask).last_hidden_state * mask[..., None]
    save_file(found, Path(__file__).with_name("t5.safetensors"))


if __name__ == "__main__":
    main()
