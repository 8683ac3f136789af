"""The task of the autoregressive prior: what it measures of a set, and its loss."""

from itertools import pairwise

import pytest
import torch

from data_pipeline.batch import Batch
from mezzotint.common.embedding_scaling import EmbeddingScaling
from mezzotint.common.errors import UserError
from models.autoregressive.embedding_prior import EmbeddingPriorConfig, similarity
from models.autoregressive.prior import PriorConfig
from models.nn.initialization import materialize
from models.text_source import ClipText
from trainer.task import Step
from trainer.tasks.conditioning.captions import ClipTextCondition
from trainer.tasks.targets import ImageEmbeddings
from trainer.tasks.unclip.embedding_codes import EmbeddingCodesConfig, chunks

MODEL = EmbeddingPriorConfig(
    dim=6, components=3, buckets=8, levels=4, features={"width": 5}, length=4, width=16, layers=1,
    heads=2,
)  # fmt: skip
SCALING = EmbeddingScaling(kind="l2_sqrt_d", dim=6, samples=40)


def settings(drop=0.0, **other):
    return EmbeddingCodesConfig(
        kind="embedding_codes",
        target=ImageEmbeddings(kind="image_embeddings", scaling=SCALING),
        condition=ClipTextCondition(
            kind="clip_text", encoder=ClipText(model="clip"), drop=drop, cached=True
        ),
        **other,
    )


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ARRAYS = {
    "image_embedding": noise(40, 6),
    "text_embedding": noise(40, 6, seed=1),
    "text_features": noise(40, 4, 5, seed=2),
    "text_tokens": torch.arange(40) % 4 + 1,
}
EMPTY = {
    "text_embedding": noise(6, seed=3),
    "text_features": noise(4, 5, seed=4),
    "text_tokens": torch.tensor(1),
}


def read(rows):
    rows = list(rows)
    arrays = {name: values[rows] for name, values in ARRAYS.items()}
    names = tuple(str(row) for row in rows)
    return Batch(keys=names, captions=names, arrays=arrays, empty_caption=EMPTY)


def fitted(drop=0.0):
    torch.manual_seed(0)
    with torch.device("meta"):
        model = MODEL.build()
    task = settings(drop).build(model)
    task.use_fit(task.fit(read, 40))
    assert len(list(materialize(model, 0, device=torch.device("cpu")))) > 0
    return task, model


def test_statistics_are_of_the_normalised_embeddings_and_of_pairs():
    _, model = fitted()
    vectors = SCALING.normalize(ARRAYS["image_embedding"])
    torch.testing.assert_close(model.codec.mean, vectors.mean(dim=0))
    codes = model.codec.encode(vectors)
    assert codes.amin(dim=0).tolist() == [0, 0, 0]
    assert codes.amax(dim=0).tolist() == [7, 7, 7]
    levels = model.codec.level(similarity(ARRAYS["image_embedding"], ARRAYS["text_embedding"]))
    assert torch.bincount(levels).tolist() == [10, 10, 10, 10]


class Engine:
    """Calls a network and keeps what it was given."""

    def __init__(self, module):
        self.module, self.given = module, None

    def __call__(self, *inputs):
        self.given = inputs
        return self.module(*inputs)


def losses(drop, seed=0):
    task, model = fitted(drop)
    engine = Engine(model)
    step = Step(0, torch.Generator().manual_seed(seed))
    (loss,) = task.losses({"model": engine}, read(range(40)), step)
    return engine.given, loss


def test_the_loss_is_that_of_the_codes_under_the_caption():
    (caption, level, codes), loss = losses(0.0)
    assert loss.part == "model"
    assert torch.equal(caption.features, ARRAYS["text_features"])
    assert caption.mask.sum(dim=1).tolist() == ARRAYS["text_tokens"].tolist()
    assert torch.equal(caption.embedding, ARRAYS["text_embedding"])
    assert (level.shape, codes.shape) == ((40,), (40, 3))
    assert float(loss.value.detach()) == pytest.approx(torch.tensor(8.0).log().item(), rel=0.2)
    loss.value.backward()


def test_a_dropped_caption_is_empty_as_a_whole_and_its_level_stays():
    (plain, level, codes), _ = losses(0.0)
    (caption, same, again), _ = losses(0.5)
    dropped = (caption.embedding == EMPTY["text_embedding"]).all(dim=1)
    assert 8 < int(dropped.sum()) < 32
    assert bool((caption.features[dropped] == EMPTY["text_features"]).all())
    assert caption.mask[dropped].sum(dim=1).unique().tolist() == [1]
    assert torch.equal(caption.features[~dropped], plain.features[~dropped])
    assert torch.equal(level, same)
    assert torch.equal(codes, again)


def test_a_large_set_is_measured_in_a_few_runs():
    rows = [list(chunk) for chunk in chunks(100_000, 4096)]
    assert [len(each) for each in rows] == [256] * 16
    assert (rows[0][0], rows[-1][-1]) == (0, 99_999)
    jumps = sum(one[-1] + 1 != other[0] for one, other in pairwise(rows))
    assert jumps == 7
    assert [list(chunk) for chunk in chunks(3, 4096)] == [[0, 1, 2]]


def test_another_model_is_refused():
    other = PriorConfig(text_vocab=9, text_length=2, image_vocab=4, grid=(2, 2), width=16)
    with pytest.raises(UserError, match=r"trains model\.kind embedding_prior"):
        settings().build(other.build())
