"""Small shard sets, made in a few milliseconds."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from data_pipeline.manifest import Manifest
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.text.tokenizer import Tokenizer

WORDS = ("red", "green", "blue", "dark")


def png(color: tuple[int, ...], size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, size, color).save(content, "PNG")
    return content.getvalue()


def raw_sample(number: int) -> RawSample:
    attributes = {"shade": WORDS[number % len(WORDS)], "number": number}
    return RawSample(
        f"{number:04d}",
        {
            "png": png((number % 256, 7, 9)),
            "txt": f"{attributes['shade']} square {number}".encode(),
            "json": json.dumps(attributes).encode(),
        },
        attributes,
        {"halves": "test" if number % 2 else "train", "all": "train"},
    )


def write_set(url: str, samples: int = 23, shard_size: int = 5, **options: bool) -> Manifest:
    return write_shards(
        (raw_sample(number) for number in range(samples)),
        url,
        name="squares",
        licence="CC0-1.0",
        provenance={"made by": "a test"},
        shard_size=shard_size,
        fields={"png": "a square", "txt": "its caption", "json": "its number"},
        splits={"halves": "even numbers train", "all": "nothing held out"},
        **options,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own."""
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEZZOTINT_CACHE_BYTES", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def squares(tmp_path: Path) -> str:
    """A set of 23 squares in shards of 5, uncompressed."""
    write_set(str(tmp_path / "squares"))
    return str(tmp_path / "squares")


@pytest.fixture
def write_squares() -> Callable[..., Manifest]:
    """Writes the squares to any URL."""
    return write_set


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., str]:
    """Makes sets of other sizes."""

    def make(name: str = "set", **options: int) -> str:
        write_set(str(tmp_path / name), **options)
        return str(tmp_path / name)

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    captions = [
        f"{shade} {thing} {number}"
        for shade in WORDS
        for thing in ("square", "circle", "woman firefighter: dark skin tone")
        for number in range(30)
    ]
    return Tokenizer(Tokenizer.train(captions, 90))


@pytest.fixture
def tokenizer_directory(tmp_path: Path, tokenizer: Tokenizer) -> str:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    return str(tmp_path / "tokenizer")


@pytest.fixture
def remote(squares):
    """The squares behind a URL that is not local."""
    system = fsspec.filesystem("memory")
    system.put(squares, "/bucket/squares", recursive=True)
    yield "memory://bucket/squares"
    system.rm("/bucket", recursive=True)


@pytest.fixture
def make_raw() -> Callable[..., RawSample]:
    """Makes samples of noise, of a width and height that are attributes."""

    def make(key: str, caption: str, width: int = 8, height: int = 8) -> RawSample:
        rng = np.random.default_rng(abs(hash((width, height))) % 1000)
        content, sizes = io.BytesIO(), {"width": width, "height": height}
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "PNG")
        return RawSample(key, {"png": content.getvalue(), "txt": caption.encode()}, sizes)

    return make
