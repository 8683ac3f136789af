import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from data_pipeline.config import DataConfig, ImageConfig, LabelConfig, Selection, TextConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.derive import derive, finished_set
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.sets.contents import SetContents
from data_pipeline.sets.write import write_contents
from mezzotint.common.errors import UserError

ENCODER, OTHER = "a" * 64, "b" * 64


def chosen(url, *selections, **options):
    return open_dataset(DataConfig(url=url, select=selections, **options))


def test_selections_are_united_and_keep_the_order_of_the_set(squares):
    red = {"shade": ("red",)}
    dataset = chosen(
        squares,
        Selection(split="halves", part="test", where={"number": (7, 3)}),
        Selection(split="all", part="train", where=red),
        Selection(split="all", part="train", where=red),
    )
    assert dataset.keys() == ("0000", "0003", "0004", "0007", "0008", "0012", "0016", "0020")
    assert dataset.entry(1).attributes == {"shade": "dark", "number": 3}


def test_no_selection_is_everything(squares):
    assert len(chosen(squares)) == 23
    assert chosen(squares).captions()[22] == "blue square 22"


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(split="thirds", part="test"), "no split 'thirds'; it has 'all', 'halves'"),
        (Selection(split="all", part="test"), "part 'test' of split 'all' .* is empty"),
        (
            Selection(split="all", part="train", where={"colour": ("red",)}),
            "an attribute 'colour'; there is 'number', 'shade'",
        ),
        (
            Selection(split="all", part="train", where={"shade": ("rde",)}),
            "where.shade: no sample .* has 'rde'; there is 'blue', 'dark', 'green', 'red'",
        ),
        (
            Selection(split="halves", part="train", where={"shade": ("green",)}),
            "selects no sample of 'squares'",
        ),
    ],
)
def test_empty_selections_are_refused_by_name(squares, selection, message):
    with pytest.raises(UserError, match=message):
        chosen(squares, selection)


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="part"):
        Selection(split="all", part="validation")


def test_fingerprints_name_set_selection_and_shuffle(make_set):
    first, second = make_set("one"), make_set("two")
    small = make_set("three", samples=22)
    some = Selection(split="halves", part="train")
    assert chosen(first).fingerprint == chosen(second).fingerprint
    fingerprints = {
        chosen(first).fingerprint,
        chosen(first, some).fingerprint,
        chosen(first, shuffle_block=3).fingerprint,
        chosen(small).fingerprint,
    }
    assert len(fingerprints) == 4


def test_a_missing_shard_is_named(squares):
    Path(squares, "squares-000002.tar").unlink()
    with pytest.raises(UserError, match=r"squares-000002.tar: this shard is in the manifest but"):
        chosen(squares)


def test_a_shard_of_another_size_is_named(squares):
    with Path(squares, "squares-000002.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"squares-000002.tar: does not match its manifest"):
        chosen(squares)


def test_a_shard_that_shrinks_while_in_use_is_named(squares):
    dataset = chosen(squares)
    with Path(squares, "squares-000004.tar").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"squares-000004.tar: does not match its manifest"):
        dataset.caption(22)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match=r"manifest.json: no such file; make it with `mezzotint"):
        chosen(str(tmp_path))


def test_an_invalid_manifest_is_named(squares):
    Path(squares, "manifest.json").write_text('{"name": 3}')
    with pytest.raises(UserError, match=r"manifest.json: "):
        chosen(squares)


def written(tmp_path, members, encoder=None):
    write_shards(
        [RawSample("key", members)],
        str(tmp_path / "one"),
        name="one",
        licence="CC0-1.0",
        provenance={},
        shard_size=1,
        fields={},
        encoder=encoder,
    )
    return str(tmp_path / "one")


def test_a_missing_caption_is_named(tmp_path):
    url = written(tmp_path, {"png": b"x"})
    with pytest.raises(UserError, match=r"one-000000.tar: key.txt: the caption is missing"):
        chosen(url)


def test_a_caption_that_is_not_utf8_is_named(tmp_path):
    dataset = chosen(written(tmp_path, {"txt": b"\xff\xfe"}))
    with pytest.raises(UserError, match=r"key.txt: not UTF-8"):
        dataset.captions()


def test_a_missing_image_is_named(tmp_path):
    url = written(tmp_path, {"txt": b"a"})
    with pytest.raises(UserError, match=r"key.png: no image .* although data.image is set"):
        chosen(url, image=ImageConfig(size=4))


def test_a_corrupt_image_is_named(tmp_path):
    url = written(tmp_path, {"txt": b"a", "png": b"not a png"})
    with pytest.raises(UserError, match=r"one-000000.tar: key.png: not a readable PNG"):
        chosen(url, image=ImageConfig(size=4)).sample(0)


def test_a_missing_array_is_named(squares):
    with pytest.raises(UserError, match=r"0000.codes.npy: no such array"):
        chosen(squares, arrays=("codes",))


def test_arrays_are_never_unpickled(tmp_path):
    content = io.BytesIO()
    np.save(content, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    url = written(tmp_path, {"txt": b"a", "codes.npy": content.getvalue()})
    with pytest.raises(UserError, match=r"key.codes.npy: not a plain array"):
        chosen(url, arrays=("codes",)).sample(0)


def test_missing_parts_of_a_batch_are_named_by_their_setting(squares):
    batch = chosen(squares).batch([0, 1])
    for access, key in (
        (lambda: batch.images, "data.image"),
        (lambda: batch.tokens, "data.text"),
        (lambda: batch.labels, "data.label is not set"),
        (lambda: batch.array("codes"), "data.arrays has no 'codes'"),
    ):
        with pytest.raises(UserError, match=key):
            access()


def test_an_attribute_gives_the_classes_in_the_order_of_its_values(squares):
    config = LabelConfig(attribute="shade", values=("dark", "blue", "green", "red"))
    batch = chosen(squares, label=config).batch([0, 1, 2, 3, 4])
    assert batch.labels.tolist() == [3, 2, 1, 0, 3]
    assert batch.labels.dtype == torch.int64
    assert config.count == 4


def test_an_integer_attribute_is_its_own_class(squares):
    config = LabelConfig(attribute="number", classes=23)
    assert chosen(squares, label=config).batch([22, 4]).labels.tolist() == [22, 4]
    assert chosen(squares).batch([0]).label is None


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"attribute": "colour", "classes": 4}, "data.label: no .* 'colour'; there is 'number'"),
        (
            {"attribute": "shade", "values": ("red", "rde")},
            "data.label.shade: no sample of 'squares' has 'rde'; there is 'blue'",
        ),
        (
            {"attribute": "shade", "values": ("red", "green", "blue")},
            r"data.label: sample '0003' has shade 'dark', .*starting with 'red'.*select.where",
        ),
        (
            {"attribute": "number", "classes": 9},
            "data.label: sample '0009' has number 9, which is no class .integers 0 to 8",
        ),
        ({"attribute": "shade", "classes": 9}, "sample '0000' has shade 'red'"),
    ],
)
def test_samples_without_a_class_are_refused_by_name(squares, label, message):
    with pytest.raises(UserError, match=message):
        chosen(squares, label=LabelConfig(**label))


def test_only_selected_samples_need_a_class(squares):
    warm = Selection(split="all", part="train", where={"shade": ("red", "green")})
    label = LabelConfig(attribute="shade", values=("red", "green"))
    assert chosen(squares, warm, label=label).batch([0, 1, 2]).labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "change",
    [
        {"images": None},
        {"url": ""},
        {"workers": -1},
        {"shuffle_block": 0},
        {"arrays": ("a b",)},
        {"memory": True, "workers": 2},
        {"image": {"size": 0}},
        {"label": {"attribute": "shade"}},
        {"label": {"attribute": "shade", "values": ["red"], "classes": 1}},
        {"label": {"attribute": "shade", "values": ["red", "blue", "red"]}},
        {"label": {"attribute": "number", "classes": 0}},
        {"image": {"size": 8, "filter": "nearest"}},
        {"text": {"tokenizer": "t", "length": 4, "dropout": 1.0}},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match="validation error"):
        DataConfig.model_validate({"url": "x", **change})


def codes_of(batch):
    """(B, 2, 2) from the images' red channel, which is the sample's number."""
    number = ((batch.images[:, 0, :2, :2] + 1) * 127.5).round().to(torch.int32)
    return {"codes": number.numpy()}


def encoded(dataset, encode=codes_of):
    """The arrays of all samples, four at a time."""
    for start in range(0, len(dataset), 4):
        yield encode(dataset.batch(range(start, min(start + 4, len(dataset)))))


@pytest.fixture
def derived(squares, tmp_path):
    source = chosen(squares, Selection(split="halves", part="test"), image=ImageConfig(size=4))
    url = str(tmp_path / "derived")
    derive(source, url, encoded(source), fields=("codes",), encoder=ENCODER)
    return url


def test_a_derived_set_keeps_keys_captions_attributes_and_splits(squares, derived):
    source = chosen(squares, Selection(split="halves", part="test"))
    made = chosen(
        derived, Selection(split="halves", part="test"), arrays=("codes",), encoder=ENCODER
    )
    assert made.keys() == source.keys()
    assert made.captions() == source.captions()
    assert [made.entry(n).attributes for n in range(11)] == [
        source.entry(n).attributes for n in range(11)
    ]
    assert made.manifest.splits["halves"].train == (0, 0, 0)
    codes = made.batch(range(11)).array("codes")
    assert codes.dtype == torch.int64
    assert codes[:, 0, 0].tolist() == list(range(1, 23, 2))
    assert "png" not in made.entry(0).members


def test_arrays_of_another_encoder_are_refused(derived):
    config = DataConfig(url=derived, arrays=("codes",))
    open_dataset(config, expected_encoder=ENCODER)
    message = f"its encoder is {ENCODER[:12]}, but this run needs {OTHER[:12]}"
    with pytest.raises(UserError, match=message):
        open_dataset(config, expected_encoder=OTHER)
    with pytest.raises(UserError, match=message):
        open_dataset(config.model_copy(update={"encoder": OTHER}))


def test_an_encoder_directory_must_be_resolved_by_the_caller(derived):
    config = DataConfig(url=derived, arrays=("codes",), encoder="runs/dvae/model")
    open_dataset(config, expected_encoder=ENCODER)
    with pytest.raises(UserError, match=r"data.encoder: 'runs/dvae/model' is not a digest"):
        open_dataset(config)


def test_a_finished_set_is_found_and_another_encoder_derives_again(squares, derived):
    source = chosen(squares, Selection(split="halves", part="test"), image=ImageConfig(size=4))
    found = finished_set(source, derived, ENCODER)
    assert found is not None
    assert found.encoder == ENCODER
    assert finished_set(source, derived, OTHER) is None
    assert finished_set(source, f"{derived}-other", ENCODER) is None
    again = derive(source, derived, encoded(source), fields=("codes",), encoder=OTHER)
    assert again.encoder == OTHER


def test_an_interrupted_derivation_leaves_no_manifest(squares, tmp_path):
    source = chosen(squares, image=ImageConfig(size=4))

    def fails(batch):
        if batch.keys[0] > "0009":
            raise KeyboardInterrupt
        return codes_of(batch)

    with pytest.raises(KeyboardInterrupt):
        derive(
            source, str(tmp_path / "d"), encoded(source, fails), fields=("codes",), encoder=ENCODER
        )
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_an_encoder_with_other_arrays_is_refused(squares, tmp_path):
    source = chosen(squares, image=ImageConfig(size=4))
    with pytest.raises(UserError, match=r"instead of the arrays \['codes'\]"):
        derive(
            source,
            str(tmp_path / "d"),
            encoded(source, lambda batch: {"tokens": np.zeros((len(batch), 2))}),
            fields=("codes",),
            encoder=ENCODER,
        )
    blocks = list(encoded(source))[:2]
    with pytest.raises(UserError, match="the encoder returned 8 of"):
        derive(source, str(tmp_path / "d"), blocks, fields=("codes",), encoder=ENCODER)
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_text_is_tokenised_to_length(squares, tokenizer_directory, tokenizer):
    text = TextConfig(tokenizer=tokenizer_directory, length=12)
    batch = chosen(squares, text=text).batch([3, 4])
    assert batch.tokens.tolist() == tokenizer(batch.captions, 12).tolist()


def test_the_digest_of_a_manifest_is_that_of_its_content(squares):
    manifest = chosen(squares).manifest
    shard = manifest.shards[0]
    content = Path(squares, shard.name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == shard.sha256
    assert len(manifest.fingerprint) == 64


def test_a_set_without_samples_is_refused(tmp_path):
    contents = SetContents(name="nothing", fields={}, licence="", provenance={}, shards=())
    write_contents(str(tmp_path), contents)
    with pytest.raises(UserError, match="selects no sample of 'nothing'"):
        open_dataset(DataConfig(url=str(tmp_path)))


def test_a_crop_is_drawn_for_training_and_leaves_other_random_numbers_as_they_are(
    tmp_path, tokenizer_directory
):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    url = str(tmp_path / "wide")
    members = {"png": content.getvalue(), "txt": b"a green square"}
    write_shards(
        [RawSample("a", members)],
        url,
        name="a",
        licence="l",
        provenance={},
        shard_size=1,
        fields={},
    )
    text = TextConfig(tokenizer=tokenizer_directory, length=12, dropout=0.5)
    image = {"size": 9, "fit": "crop", "flip": True, "flip_with_captions": True}
    plain, cropped = (
        open_dataset(DataConfig(url=url, text=text, image=ImageConfig.model_validate(fields)))
        for fields in (image, {**image, "crop": {"position": "random"}})
    )
    assert np.array_equal(cropped.sample(0).image, pixels[:, 2:11])
    lefts = set()
    for epoch in range(30):
        before, after = (one.sample(0, seed=1, epoch=epoch) for one in (plain, cropped))
        assert np.array_equal(before.text, after.text)
        flipped = not np.array_equal(before.image, pixels[:, 2:11])
        found = after.image[:, ::-1] if flipped else after.image
        (left,) = (at for at in range(6) if np.array_equal(found, pixels[:, at : at + 9]))
        lefts.add(left)
        assert after.sizes == (9, 14, 0, 5 - left if flipped else left, 9, 9)
    assert lefts == set(range(6))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cache_in_memory": True}, "cache_in_memory keeps one form of an image"),
        ({"hint": {"name": "edges"}}, "cuts images, but not hints"),
        ({"arrays": ["codes"]}, "cuts images, but not codes"),
    ],
)
def test_a_crop_is_refused_beside_what_it_does_not_cut(fields, message):
    image = {"size": 4, "fit": "crop", "crop": {}}
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"url": "x", "image": image, **fields})
