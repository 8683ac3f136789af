"""`mezzotint data tokenizer`: a tokenizer from a set's captions."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.text.tokenizer import TOKENIZER_NAME
from data_pipeline.text.train_tokenizer import TokenizerOptions, TrainedTokenizer, train_tokenizer
from launch.progress import ProgressCallback, Reporter
from mezzotint.common import storage
from mezzotint.common.digests import sha256

_EVERY = 1000


def train_set(url: str, out: str, options: TokenizerOptions, *, as_json: bool) -> str:
    """Train a tokenizer on all captions of a set and write it to the directory `out`."""
    with Reporter(None, shows=not as_json) as reporter:
        trained = train_on(open_dataset(DataConfig(url=url)), options, reporter.callback("samples"))
    path = storage.join(out, TOKENIZER_NAME)
    replaced = storage.read_bytes(path) if storage.exists(path) else trained.content
    storage.write_bytes(path, trained.content)
    another = None if replaced == trained.content else sha256(replaced)
    if as_json:
        account = {name: value for name, value in asdict(trained).items() if name != "content"}
        digest = sha256(trained.content)
        tree = {"file": path, "vocab": options.vocab, "sha256": digest, "replaced": another}
        return json.dumps({**tree, **account})
    lines = [f"{path}: {options.vocab} pieces from {trained.captions:,} captions"]
    lines += [f"  {note}" for note in trained.notes()]
    if another is not None:
        lines.append(
            f"  another tokenizer was there (sha256 {another[:12]}...); runs that began with it "
            "cannot go on with this one, model directories hold their own copy"
        )
    return "\n".join(lines)


def train_on(
    dataset: Dataset, options: TokenizerOptions, progress: ProgressCallback
) -> TrainedTokenizer:
    """Train a tokenizer on all captions of the selected samples."""

    def captions() -> Iterator[str]:
        for index in range(len(dataset)):
            yield from dataset.captions_of(index)
            if index % _EVERY == 0 or index == len(dataset) - 1:
                progress(index + 1, len(dataset))

    return train_tokenizer(captions(), options)
