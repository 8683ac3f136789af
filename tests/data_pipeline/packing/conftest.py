import io
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.packing.pack import PackOptions, pack


def png(color: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6, 6), color).save(content, "PNG")
    return content.getvalue()


class Packed:
    """What came of a source: captions, attributes and rejections of the set."""

    def __init__(self, source: Path, out: Path, options: PackOptions) -> None:
        self.report = pack(str(source), str(out), options)
        dataset = open_dataset(DataConfig(url=str(out)))
        self.captions = [
            dataset.member(index, "txt").decode().split("\n") for index in range(len(dataset))
        ]
        self.attributes = [dataset.entry(index).attributes for index in range(len(dataset))]
        self.rejected = {one.name: (one.fault, one.detail) for one in self.report.rejected}
        self.ignored = {rule: one.count for rule, one in self.report.ignored.items()}
        self.lines = (out / "rejected.jsonl").read_bytes()


@pytest.fixture
def images(tmp_path):
    """A folder with the images 0.png to 5.png."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(6):
        (root / f"{number}.png").write_bytes(png())
    return root


@pytest.fixture
def packed(tmp_path):
    numbers = iter(range(1000))

    def run(source: Path, options: PackOptions | None = None) -> Packed:
        return Packed(source, tmp_path / f"packed{next(numbers)}", options or PackOptions())

    return run
