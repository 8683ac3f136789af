"""Held-out samples share nothing with training samples."""

import io
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.packing.records import Content
from data_pipeline.packing.splits import connected, overlap, random_split
from data_pipeline.sets.contents import Split
from data_pipeline.sets.stored_set import read_contents
from data_pipeline.sets.write import write_contents
from launch.data.pack import to_text


def png(color: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6, 6), color).save(content, "PNG")
    return content.getvalue()


def contents(pairs: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, Content]:
    return {
        key: Content(image=image, captions=captions, rest="", size=None)
        for key, (image, captions) in pairs.items()
    }


SAMPLES = st.dictionaries(
    st.text("0123456789", min_size=1, max_size=3),
    st.tuples(
        st.sampled_from([f"{one:016x}" for one in range(8)]),
        st.lists(st.sampled_from([f"{3**one:016x}" for one in range(12)]), max_size=3).map(tuple),
    ),
)


@given(SAMPLES, st.floats(0, 0.9), st.integers(0, 3))
def test_a_random_split_has_no_overlap_and_every_sample(pairs, fraction, before):
    samples = contents(pairs)
    keys = list(samples)
    first = random_split(dict(list(samples.items())[: len(keys) // 2]), fraction, None)
    split = random_split(samples, fraction, first if before else None)
    assert sorted((*split.train, *split.test)) == sorted(keys)
    assert overlap(split, samples) == 0
    if before:
        assert set(first.train) <= set(split.train)
    assert sorted(key for group in connected(samples) for key in group) == sorted(keys)


def test_samples_are_connected_through_others():
    samples = contents({"a": ("1", ("x",)), "b": ("2", ("x", "y")), "c": ("2", ("z",)),
                        "d": ("3", ("w",))})  # fmt: skip
    assert connected(samples) == [["a", "b", "c"], ["d"]]
    assert overlap(Split(description="", train=("a", "d"), test=("b", "c")), samples) == 1


def test_images_with_several_captions_in_rows_are_held_out_whole(images, tmp_path):
    rows = ["image,caption"]
    for number in range(20):
        (images / f"{number}.png").write_bytes(png(f"#{number:06x}"))
        rows += [f"{number}.png,{words} {number}" for words in ("a photo of", "this is", "see")]
    (images / "t.csv").write_text("\n".join(rows))
    report = pack(str(images / "t.csv"), str(tmp_path / "out"), PackOptions(test_fraction=0.3))
    split = report.manifest.splits["random"]
    assert 0 < sum(split.test) < 60
    assert report.overlap == {"random": 0}
    assert report.noticed["the image of another sample"].count == 40


def test_a_group_larger_than_the_fraction_and_the_overlap_of_a_split_are_said(images, tmp_path):
    for number in range(6):
        (images / f"{number}.png").write_bytes(png(f"#{number:06x}"))
        (images / f"{number}.txt").write_text("A  dog" if number % 2 else f"dog {number}")
    (images / "1.txt").write_text("a dog")
    report = pack(str(images), str(tmp_path / "one"), PackOptions(test_fraction=0.1))
    (rule,) = [one for one in report.noticed if "larger than the test fraction" in one]
    assert report.noticed[rule].count == 3
    contents = read_contents(report.url)
    keys = [one.key for one in contents.samples()]
    mine = Split(description="", train=tuple(keys[:3]), test=tuple(keys[3:]))
    write_contents(report.url, contents.model_copy(update={"splits": {"mine": mine}}))
    report = pack(report.url, str(tmp_path / "two"), PackOptions())
    assert report.overlap == {"mine": 2}
    assert "split mine: 3 train, 3 test; 2 test samples share" in to_text(report)
