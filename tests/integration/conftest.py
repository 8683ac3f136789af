"""What integration tests train on: the embedded emoji, a tokenizer, made-up image tokens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.derive import derive
from data_pipeline.text import Tokenizer

PEOPLE = Selection(split="composition", part="train")
VOCAB = 300


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory) -> Path:
    """A tokenizer of 300 pieces trained on the captions of people."""
    directory = tmp_path_factory.mktemp("tokenizer")
    captions = open_dataset(DataConfig(url="data/emoji", select=(PEOPLE,))).captions()
    (directory / "tokenizer.model").write_bytes(Tokenizer.train(captions, VOCAB))
    return directory


@pytest.fixture(scope="session")
def token_set(tmp_path_factory) -> Path:
    """Image tokens of people: the brightness of 8 x 8 patches in 64 levels."""
    directory = tmp_path_factory.mktemp("tokens") / "set"
    data = DataConfig(url="data/emoji", select=(PEOPLE,), image=ImageConfig(size=8))

    def encode(batch) -> dict[str, np.ndarray]:
        grey = (batch.images.mean(1) + 1) / 2
        return {"codes": (grey * 63).round().int().numpy()}

    derive(open_dataset(data), str(directory), encode, fields=("codes",), encoder="0" * 64, batch=64)
    return directory


@pytest.fixture(scope="session")
def tiny_inputs(tokenizer_directory, token_set) -> Callable[[str], list[str]]:
    """Overrides that point a recipe at these inputs."""
    text = [
        f"data.text.tokenizer={tokenizer_directory}",
        f"model.text_vocab={VOCAB}",
    ]

    def overrides(name: str) -> list[str]:
        match name:
            case "emoji_prior":
                return [*text, f"data.url={token_set}"]
            case "emoji_base" | "emoji_clip":
                return text
            case _:
                return []

    return overrides
