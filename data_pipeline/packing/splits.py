"""Splits that keep together what shares an image or a caption, and the overlap of any split."""

from collections.abc import Mapping

from data_pipeline.packing.records import Content
from data_pipeline.sets.contents import Split
from data_pipeline.sets.split_rule import SplitRule, captions_digest, hashed
from mezzotint.common.digests import sha256


def random_split(contents: Mapping[str, Content], fraction: float, before: Split | None) -> Split:
    """Hold out about `fraction` of the samples, by key, those that share content together.

    The part of a group follows from a hash of its captions, unless a sample of it is in the split
    `before`. A group that joins training and test samples of it becomes training samples.
    """
    train_before = set(before.train) if before else set()
    test_before = set(before.test) if before else set()
    train: set[str] = set()
    for group in connected(contents):
        if train_before.intersection(group):
            held_out = False
        elif test_before.intersection(group):
            held_out = True
        else:
            captions = (one for key in group for one in contents[key].captions)
            held_out = hashed(captions_digest(captions)) < fraction
        if not held_out:
            train.update(group)
    return Split(
        description=f"{fraction:.1%} of the captions held out by hash",
        train=tuple(key for key in contents if key in train),
        test=tuple(key for key in contents if key not in train),
    )


def split_by_rule(contents: Mapping[str, Content], rule: SplitRule, before: Split | None) -> Split:
    """The parts that a rule gives, by key; samples of the split `before` stay where they are."""
    known = {} if before is None else before.parts()
    parts = {
        key: known.get(key) or rule.part(_hashed_of(rule, key, contents[key])) for key in contents
    }
    return Split(
        description=rule.description,
        train=tuple(key for key in contents if parts[key] == "train"),
        test=tuple(key for key in contents if parts[key] == "test"),
    )


def _hashed_of(rule: SplitRule, key: str, content: Content) -> str:
    match rule.by:
        case "caption":
            return captions_digest(content.captions)
        case "image" if content.image is not None:
            return content.image
        case _:
            return sha256(key)


def connected(contents: Mapping[str, Content]) -> list[list[str]]:
    """Groups of keys that share an image or a caption, perhaps through other samples."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        path = []
        while (up := parent.setdefault(node, node)) != node:
            path.append(node)
            node = up
        for one in path:
            parent[one] = node
        return node

    for key, content in contents.items():
        for shared in _shared(content):
            parent[root(shared)] = root(f"key {key}")
    groups: dict[str, list[str]] = {}
    for key in contents:
        groups.setdefault(root(f"key {key}"), []).append(key)
    return list(groups.values())


def overlap(split: Split, contents: Mapping[str, Content]) -> int:
    """The number of test samples that share an image or a caption with a training sample."""
    seen = {shared for key in split.train if key in contents for shared in _shared(contents[key])}
    return sum(
        1 for key in split.test if key in contents and not seen.isdisjoint(_shared(contents[key]))
    )


def _shared(content: Content) -> list[str]:
    """What a sample may share with others."""
    captions = [f"caption {one}" for one in content.captions]
    return captions if content.image is None else [f"image {content.image}", *captions]
