"""Names and values that fit into a tracking store: what is cut says so, and stays distinct."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping

NAME_LIMIT = 250
"""Characters of the name of a parameter, tag or metric."""
REQUEST_BYTES = 500_000
"""Names and values of one request; MLflow refuses requests above 1,000,000 bytes."""
_ENTRY_BYTES = 64
"""Of the JSON around one name and value."""


def fit_value(value: str, limit: int) -> str:
    """A text of at most `limit` characters; one that is cut ends with its length and SHA-256."""
    if len(value) <= limit:
        return value
    mark = f" ... [cut: {len(value):,} characters, SHA-256 {_digest(value)}]"
    return value[: limit - len(mark)] + mark


def fit_name(name: str, limit: int) -> str:
    """A name as MLflow takes it: letters, digits, `_-.: /`, and no `..` or `//`.

    One that had to be changed ends with a digest of the original: different names stay different.
    """
    words = re.sub(r"[^/\w.\- :]", "_", name).split("/")
    fit = "/".join(word for word in words if word not in ("", ".", ".."))
    if fit == name and 0 < len(name) <= limit:
        return name
    ending = f"-{_digest(name)[:8]}"
    return fit[: limit - len(ending)] + ending


def fit_values(values: dict[str, str], limit: int) -> list[tuple[str, str]]:
    """Parameters or tags as a store takes them."""
    return [(fit_name(key, NAME_LIMIT), fit_value(value, limit)) for key, value in values.items()]


def batches(values: Mapping[str, str], count: int) -> Iterator[dict[str, str]]:
    """Names and values in requests of at most `count` and of bounded size."""
    batch: dict[str, str] = {}
    size = 0
    for name, value in values.items():
        entry = len(json.dumps([name, value])) + _ENTRY_BYTES
        if batch and (len(batch) == count or size + entry > REQUEST_BYTES):
            yield batch
            batch, size = {}, 0
        batch[name] = value
        size += entry
    if batch:
        yield batch


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
