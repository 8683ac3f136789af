import json

import pytest

from data_pipeline.packing.pack import PackOptions
from mezzotint.common.errors import UserError


def lines(*values):
    return "".join(json.dumps({"image": "0.png", "caption": value}) + "\n" for value in values)


def write(folder, text, name="t.jsonl"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_only_texts_are_captions(images, packed):
    values = [
        ["a cat", "a kitten"],
        float("nan"),
        {"en": "a hen"},
        True,
        0,
        None,
        1.5,
        [],
        ["a", 3],
    ]
    found = packed(write(images, lines(*values, "a dog", "")))
    assert found.captions == [["a cat", "a kitten"], ["a dog"]]
    assert {name: detail for name, (_, detail) in found.rejected.items()} == {
        "line 2: 0.png": "its caption is a number that is not finite (nan), not a text",
        "line 3: 0.png": "its caption is an object with the fields en, not a text",
        "line 4: 0.png": "its caption is true or false, not a text",
        "line 5: 0.png": "its caption is a number, not a text",
        "line 6: 0.png": "its caption cell is empty",
        "line 7: 0.png": "its caption is a number, not a text",
        "line 8: 0.png": "its caption is empty",
        "line 9: 0.png": "its list of captions holds a number, not a text",
        "line 11: 0.png": "its caption is empty",
    }


def test_a_bad_line_costs_its_row(images, packed):
    text = (
        '{"image":"0.png","caption":"cut \\ud83d"}\n'
        '{"image":"0\\u0000.png","caption":"NUL"}\n'
        '{"image":"0.png","caption":"a\\u0000b"}\n'
        '{"image":"0.png","caption":\n'
        '["0.png","an array"]\r\n'
        '{"image":"0.png","caption":"a","caption":"b"}\n'
        '{"image":"0.png"}\n'
        '{"image":"0.png","caption":' + "[" * 100_000 + "\n"
        '{"image":"0.png","caption":"one","size":' + "9" * 5000 + "}\n"
        '{"image":' + "1" * 300 + ',"caption":"number"}\n'
        '{"image":["0.png","1.png"],"caption":"two"}\n'
        "\n"
        '{"image":"0.png","caption":"good \U0001f600"}\n'
        '{"image":"1.png","caption":"line\u2028separator"}'
    )
    found = packed(write(images, text))
    assert found.captions == [["good \U0001f600"], ["line separator"]]
    assert {name: detail for name, (_, detail) in found.rejected.items()} == {
        "line 1: 0.png": "its caption holds half of a surrogate pair",
        "line 2: 0\\x00.png": "its image cell holds a NUL character",
        "line 3: 0.png": "its caption holds a NUL character",
        "line 4": "not JSON: Expecting value at line 1, character 28",
        "line 5": "a list of 2, not an object",
        "line 6": "it has 'caption' twice",
        "line 7: 0.png": "it has no 'caption'",
        "line 8": "not JSON: nested too deeply",
        "line 9": found.rejected["line 9"][1],
        "line 10": "its image cell is a number",
        "line 11": "its image cell is a list of 2",
    }
    assert found.rejected["line 9"][1].startswith("not JSON: Exceeds the limit (4300 digits)")
    assert found.ignored == {"empty line": 1}


def test_bytes_that_are_no_utf8_cost_their_line(images, packed):
    content = b'{"image":"0.png","caption":"caf\xe9"}\n{"image":"0.png","caption":"caf\xc3\xa9"}\n'
    found = packed(write(images, b"\xef\xbb\xbf" + content))
    assert found.captions == [["café"]]
    assert found.rejected["line 1"][1] == "not UTF-8; write the table as UTF-8"


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_an_array_of_objects_is_a_table(images, packed, name):
    values = [{"image": "0.png", "caption": "a dog"}, 3, {"image": "1.png", "caption": ["a", "b"]}]
    found = packed(write(images, json.dumps(values, indent=1), name))
    assert found.captions == [["a dog"], ["a", "b"]]
    assert found.rejected == {"row 2": ("row unreadable", "a number, not an object")}


@pytest.mark.parametrize("text", ['{\n "image": "0.png"\n}', "[{]", "no table", "[1, 2", "3\n4\n"])
def test_what_is_no_table_is_refused(images, packed, text):
    with pytest.raises(UserError, match=r"t.json: not a readable table \("):
        packed(write(images, text, "t.json"))


def test_rows_may_have_different_keys(images, packed):
    rows = [
        {"image": "0.png", "text": "other"},
        {"caption": "a dog", "image": "1.png", "label": 3},
        {"image": "2.png", "caption": "a cow", "label": None},
        {"image": "3.png", "caption": "a hen"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    found = packed(write(images, text, "t.ndjson"), PackOptions(attribute_columns=("label",)))
    assert found.captions == [["a dog"], ["a cow"]]
    assert found.attributes == [{"label": 3}, {"label": None}]
    assert found.rejected["line 1: 0.png"][1] == "it has no 'caption'"
    assert found.rejected["line 4: 3.png"][1] == "it has no 'label'"


def test_fields_of_objects_are_named_with_dots(images, packed):
    rows = [
        {"image": {"path": "0.png"}, "caption": {"en": "a hen", "de": "ein Huhn"}},
        {"image": {"path": "1.png"}, "caption": {"de": "ein Huhn"}},
        {"image": {"path": "2.png"}, "caption": "a text"},
        {"image": {"path": "3.png"}, "caption": [{"en": "a"}, {"en": "b"}]},
        {"image": {"height": 6, "width": 6}, "caption": {"en": "no image"}},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    found = packed(write(images, text), PackOptions(caption_column="caption.en"))
    assert found.captions == [["a hen"], ["a", "b"]]
    assert [detail for _, detail in found.rejected.values()][:2] == [
        "it has no 'caption.en'",
        "'caption.en': a field of a text",
    ]
    assert found.rejected["line 5"][1].startswith(
        "its image cell is an object with the fields height, width, and"
    )
    assert found.ignored == {}


def test_no_report_holds_a_long_or_unprintable_cell(images, packed):
    long = "x" * 100_000
    rows = [
        {"image": "0.png", "caption": "good"},
        {"image": long, "caption": "long"},
        {"image": f"http://[{long}/0.png", "caption": "bracket"},
        {"image": f"https://user:{long}@host/0.png", "caption": "password"},
        {"image": f"pipe://{long}", "caption": "scheme"},
        {"image": "a\x1b[31mred\n.png", "caption": "control"},
        {"image": {long: long}, "caption": "fields"},
        {"image": "0.png", "caption": {long: long}},
    ]
    found = packed(write(images, "".join(json.dumps(row) + "\n" for row in rows)))
    assert found.captions == [["good"]]
    assert len(found.rejected) == 7
    assert max(map(len, found.lines.split(b"\n"))) < 700
    assert "line 6: a\\x1b[31mred\\n.png" in found.rejected
