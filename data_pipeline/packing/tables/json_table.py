"""Tables of JSON objects: one a line, or an array of them. A bad line costs its row."""

import json
from collections.abc import Iterable, Sequence

from data_pipeline.packing.source import InvalidSample
from data_pipeline.packing.tables.cells import described, prefixes, shown
from data_pipeline.packing.tables.text_table import Content, RowTable, TextRow
from mezzotint.common.errors import UserError


def json_table(url: str, content: Content, columns: Sequence[str], image_column: str) -> RowTable:
    """JSON Lines, or an array of objects. Only the values of `columns` are kept.

    Raises:
        UserError: It is neither, or no line is an object.
    """
    text = content.text
    if text.lstrip(" \t\r\n").startswith("["):
        rows, keys = _objects(enumerate(_array(url, content), 1), columns)
        return RowTable(keys, rows, content.digest, (), "row", image_column)
    lines = list(enumerate(text.split("\n"), 1))
    if not lines[-1][1]:
        lines.pop()
    empty = [f"line {number}" for number, line in lines if not line.strip(" \t\r")]
    values = ((number, _parsed(content, line)) for number, line in lines if line.strip(" \t\r"))
    rows, keys = _objects(values, columns)
    if rows and not keys:
        detail = next(row.cells for row in rows if isinstance(row.cells, InvalidSample))
        raise UserError(
            f"{url}: not a readable table (line {rows[0].number}: {detail}); give one object a "
            "line, or an array of objects"
        )
    return RowTable(keys, rows, content.digest, empty, "line", image_column)


def _array(url: str, content: Content) -> list[object]:
    try:
        content.check(content.text)
        found = json.loads(content.text, object_pairs_hook=_object)
    except (InvalidSample, ValueError, RecursionError) as error:
        raise UserError(f"{url}: not a readable table ({_reason(error)})") from error
    return found if isinstance(found, list) else [found]


def _parsed(content: Content, line: str) -> object:
    """The value on a line, or the InvalidSample that says why there is none."""
    try:
        content.check(line)
        return json.loads(line, object_pairs_hook=_object)
    except InvalidSample as error:
        return error
    except (ValueError, RecursionError) as error:
        return InvalidSample("row unreadable", f"not JSON: {_reason(error)}")


def _objects(
    values: Iterable[tuple[int, object]], columns: Sequence[str]
) -> tuple[list[TextRow], tuple[str, ...]]:
    """Rows of the values, and the keys of all of them in order."""
    kept = prefixes(columns)
    keys: dict[str, None] = {}
    rows: list[TextRow] = []
    for number, value in values:
        match value:
            case InvalidSample():
                rows.append(TextRow(number, value))
            case dict():
                keys.update(dict.fromkeys(value))
                cells = {name: value[name] for name in value if name in kept}
                bad = (one for one in cells.values() if isinstance(one, InvalidSample))
                rows.append(TextRow(number, next(bad, cells)))
            case _:
                reason = f"{described(value)}, not an object"
                rows.append(TextRow(number, InvalidSample("row unreadable", reason)))
    return rows, tuple(keys)


def _object(pairs: list[tuple[str, object]]) -> object:
    """A dict, or the InvalidSample of an object with a repeated key."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    repeated = next(name for name in names if names.count(name) > 1)
    return InvalidSample("row unreadable", f"it has '{shown(repeated)}' twice")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, character {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else shown(str(error))
