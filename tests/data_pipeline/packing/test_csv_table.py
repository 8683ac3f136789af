import csv
import gzip
import io

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_pipeline.packing.source import InvalidSample
from data_pipeline.packing.tables.cells import find
from data_pipeline.packing.tables.csv_table import MISSING, csv_table
from data_pipeline.packing.tables.text_table import Content
from mezzotint.common.errors import UserError

UNCLOSED = "a quote is not closed"


def read(text, columns=("image", "caption")):
    """Cells of the rows, or the reason why a row has none, by name."""
    table = csv_table("t.csv", Content(text, "", valid=True), columns, "image")
    found = {}
    for row in range(len(table)):
        number = table.rows[row].number
        try:
            found[number] = tuple(find(table.cells(row), column) for column in columns)
        except InvalidSample as error:
            found[number] = str(error)
    return found


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("0.png,a dog\n1.png,a cow\n", {2: ("0.png", "a dog"), 3: ("1.png", "a cow")}),
        ("0.png,a dog\r\n1.png,a cow", {2: ("0.png", "a dog"), 3: ("1.png", "a cow")}),
        ('0.png,"a dog, big"\n', {2: ("0.png", "a dog, big")}),
        ('0.png,"a ""big"" dog"\n', {2: ("0.png", 'a "big" dog')}),
        ('0.png,a "big" dog\n', {2: ("0.png", 'a "big" dog')}),
        ('0.png,"two\nlines"\n1.png,x\n', {2: ("0.png", "two\nlines"), 4: ("1.png", "x")}),
        (
            '0.png,"two\r\n\r\nlines"\r\n1.png,x',
            {2: ("0.png", "two\r\n\r\nlines"), 5: ("1.png", "x")},
        ),
        (
            "0.png,line\u2028separator\x85and\x0btab\n",
            {2: ("0.png", "line\u2028separator\x85and\x0btab")},
        ),
        ("0.png,a\rb\n", {2: ("0.png", "a\rb")}),
        ("0.png,\n", {2: ("0.png", None)}),
        ('0.png,""\n', {2: ("0.png", None)}),
        ("\n0.png,x\n\n \n1.png,y\n", {3: ("0.png", "x"), 6: ("1.png", "y")}),
    ],
)
def test_rows_are_read(text, rows):
    assert read("image,caption\n" + text) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        # the quote runs to the end of the file
        ('0.png,"big\n1.png,a dog\n', {2: UNCLOSED, 3: ("1.png", "a dog")}),
        # it meets a quote of a later row
        ('0.png,"big\n1.png,"a dog"\n2.png,x\n', {2: 1, 3: ("1.png", "a dog"), 4: ("2.png", "x")}),
        ('0.png,"big\n"1.png","a dog"\n', {2: 1, 3: ("1.png", "a dog")}),
        ('0.png,"big\n1.png,a dog\n2.png,"x\n', {2: 1, 3: ("1.png", "a dog"), 4: UNCLOSED}),
        # which closes it: valid, but a whole row would be in the caption
        ('0.png,"big\n1.png,a 6"\n2.png,x\n', {2: 2, 3: ("1.png", 'a 6"'), 4: ("2.png", "x")}),
        (
            "0.png,a dog,3\n1.png\n2.png,x\n",
            {2: "3 fields, but", 3: "1 field, but", 4: ("2.png", "x")},
        ),
        ('0.png,"a" dog\n1.png,x\n', {2: 1, 3: ("1.png", "x")}),
    ],
)
def test_a_row_that_breaks_the_format_is_rejected_by_its_line(text, rows):
    reasons = {1: "a quote is not closed, or text follows", 2: "a quote seems not to be closed"}
    found = read("image,caption\n" + text)
    assert found.keys() == rows.keys()
    for line, expected in rows.items():
        if isinstance(expected, tuple):
            assert found[line] == expected
        else:
            assert found[line].startswith(reasons.get(expected, expected))


@pytest.mark.parametrize(
    "header",
    [
        "image;caption",
        "image\tcaption",
        "image|caption",
        "a,b;image;caption",
        "sep=;\nimage;caption",
        '"image";"caption"',
        "\nimage;caption",
    ],
)
def test_the_separator_is_that_of_the_header(header):
    separator = header[-8] if not header.endswith('"') else ";"
    other = "x, y" + separator if header.startswith("a") else ""
    rows = read(f"{header}\n{other}0.png{separator}a dog, big\n")
    assert list(rows.values()) == [("0.png", "a dog, big")]


def test_spaces_after_separators_are_skipped_if_the_header_has_them():
    assert read('image, caption\n0.png, a dog\n1.png, "big, old"\n') == {
        2: ("0.png", "a dog"),
        3: ("1.png", "big, old"),
    }


def test_two_columns_of_one_name_are_refused_if_they_are_used():
    with pytest.raises(UserError, match=r"t.csv: 2 columns have the name 'caption'; rename"):
        read("image,caption,caption\n0.png,a,b\n")
    assert read("image,caption,x,x\n0.png,a,b,c\n") == {2: ("0.png", "a")}


def test_an_unreadable_header_is_refused():
    with pytest.raises(UserError, match=r"t.csv: the first line must name the columns: a quote"):
        read('"image,caption\n0.png,a\n')


def test_bytes_that_are_no_utf8_cost_their_row(images, packed):
    table = images / "t.csv"
    table.write_bytes(b"image,caption\n0.png,caf\xe9\n1.png,caf\xc3\xa9\n")
    found = packed(table)
    assert found.captions == [["café"]]
    assert found.rejected["line 2"][1] == "not UTF-8; write the table as UTF-8"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_read(images, packed, encoding):
    table = images / "t.TSV"
    table.write_bytes("image\tcaption\n0.png\tcafé\n".encode(encoding))
    assert packed(table).captions == [["café"]]


def test_a_compressed_table_is_read_or_refused(images, packed):
    table = images / "t.csv.gz"
    table.write_bytes(gzip.compress(b"image,caption\n0.png,a dog\n"))
    assert packed(table).captions == [["a dog"]]
    table.write_bytes(table.read_bytes()[:-6])
    with pytest.raises(UserError, match=r"t.csv.gz: not a whole gzip file"):
        packed(table)


def test_what_programs_print_is_no_caption(images, packed):
    rows = {
        "0.png": "nan",
        "1.png": "None",
        "2.png": "['a cat', 'a kitten']",
        "3.png": "['a cat' 'a kitten']",
        "4.png": '["a cat", "a kitten"]',
        "5.png": "[a cat] and None",
    }
    with (images / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows.items()])
    found = packed(images / "t.csv")
    assert found.captions == [["a cat", "a kitten"], ["[a cat] and None"]]
    assert [(line[-5:], fault) for line, (fault, _) in found.rejected.items()] == [
        ("0.png", "caption missing"),
        ("1.png", "caption missing"),
        ("2.png", "caption unusable"),
        ("3.png", "caption unusable"),
    ]
    assert found.rejected["line 4: 2.png"][1].startswith("its caption is a list that a program")


def test_lines_and_columns_without_use_are_counted(images, packed):
    table = images / "t.csv"
    table.write_text("image,caption,width,\n0.png,a dog,6,\n\n1.png,a cow,6,\n")
    found = packed(table)
    assert found.captions == [["a dog"], ["a cow"]]
    assert found.ignored == {"column not used": 2, "empty line": 1}
    assert found.report.ignored["column not used"].examples == ("width", "(column 4)")
    assert found.report.ignored["empty line"].examples == ("line 3",)


cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(cells, cells), max_size=6), st.sampled_from(",;\t|"), st.booleans())
def test_what_the_csv_module_writes_is_read_back(rows, separator, quoted):
    file = io.StringIO(newline="")
    writer = csv.writer(
        file, delimiter=separator, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    )
    writer.writerows([("image", "caption"), *rows])
    lines = any("\n" in cell or "\r" in cell for row in rows for cell in row)
    assume(not (lines and any(set(cell) & set(",;\t|") for row in rows for cell in row)))
    found = list(read(file.getvalue()).values())
    assert found == [tuple(None if cell in MISSING else cell for cell in row) for row in rows]


lines = st.lists(st.text('ab,"\n\r ;.png', max_size=12), max_size=8)


@given(lines)
def test_every_line_is_in_a_row_or_empty(parts):
    text = "image,caption\n" + "\n".join(parts)
    table = csv_table("t.csv", Content(text, "", valid=True), ("image", "caption"), "image")
    starts = [row.number for row in table.rows] + [int(name[5:]) for name in table.empty]
    assert len(set(starts)) == len(starts)
    count = text.count("\n") + (not text.endswith("\n"))
    covered = {1}
    for number in sorted(starts):
        row = next((one for one in table.rows if one.number == number), None)
        height = 1
        if row is not None and not isinstance(row.cells, InvalidSample):
            height += sum((cell or "").count("\n") for cell in row.cells.values())
        covered |= set(range(number, number + height))
    assert covered >= set(range(1, count + 1))
