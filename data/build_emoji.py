"""Build the embedded set `data/emoji` from the Noto colour font and the CLDR annotations.

    apt-get download fonts-noto-color-emoji && dpkg-deb -x fonts-noto-color-emoji_*.deb font
    npm pack emojibase-data@17.0.0 && tar xzf emojibase-data-17.0.0.tgz
    python data/build_emoji.py font/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf package OUT

The same two inputs give the same bytes.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fontTools.ttLib import TTFont

from data_pipeline.packing.shard_writer import RawSample, in_splits, write_shards
from data_pipeline.sets.contents import Split
from mezzotint.common.digests import sha256, sha256_file

TONES = ("none", "light", "medium-light", "medium", "medium-dark", "dark")
TONE_IN_LABEL = re.compile(r"(?:: |, )((?:medium-)?(?:light|dark)|medium) skin tone")
GENDER_IN_LABEL = re.compile(r"\b(man|woman|person)\b")
WORD = re.compile(r"[^\W_]+(?:[-’'][^\W_]+)*")

# Words that imply a gender: (role, gender).
GENDERED_WORDS = {
    "older person": ("old", "person"),
    "boy": ("child", "man"),
    "girl": ("child", "woman"),
    "child": ("child", "person"),
    "prince": ("royal", "man"),
    "princess": ("royal", "woman"),
    "person with crown": ("royal", "person"),
    "merman": ("merfolk", "man"),
    "mermaid": ("merfolk", "woman"),
    "merperson": ("merfolk", "person"),
    "Santa Claus": ("Claus", "man"),
    "Mrs. Claus": ("Claus", "woman"),
    "Mx Claus": ("Claus", "person"),
}
# Images of several people have no single gender; all variants are one concept.
TOGETHER = re.compile(
    r"^(?:woman and man|women|men|people) (.*)$|^(kiss|couple with heart|family)\b"
)
PEOPLE = 1
REGIONAL_INDICATORS = "regional-indicators"
TEST_TONE_SHARE, TEST_BASE_SHARE = 0.2, 0.1
SHARD_SIZE = 1000


@dataclass(frozen=True)
class Emoji:
    key: str
    caption: str
    png: bytes
    group: str
    subgroup: str
    tags: tuple[str, ...]
    base: str
    role: str | None
    gender: str | None
    tone: str

    def sample(self) -> RawSample:
        attributes = {
            "group": self.group,
            "base": self.base,
            "role": self.role,
            "gender": self.gender,
            "tone": self.tone,
        }
        record = {**attributes, "subgroup": self.subgroup, "tags": self.tags}
        members = {
            "json": json.dumps(record, ensure_ascii=False, sort_keys=True).encode(),
            "png": self.png,
            "txt": self.caption.encode(),
        }
        return RawSample(self.key, members, attributes)


class Glyphs:
    """PNG bytes of code-point sequences: cmap, then GSUB ligatures, without variation selectors."""

    def __init__(self, path: Path) -> None:
        font = TTFont(path, lazy=True)
        self.version = str(font["name"].getDebugName(5))
        self.names = font.getBestCmap()
        self.bitmaps = font["CBDT"].strikeData[0]
        self.ligatures = {
            (first, *ligature.Component): ligature.LigGlyph
            for lookup in font["GSUB"].table.LookupList.Lookup
            if lookup.LookupType == 4
            for table in lookup.SubTable
            for first, ligatures in table.ligatures.items()
            for ligature in ligatures
        }

    def png(self, hexcode: str) -> bytes | None:
        points = [int(code, 16) for code in hexcode.split("-") if code != "FE0F"]
        if any(point not in self.names for point in points):
            return None
        glyphs = tuple(self.names[point] for point in points)
        glyph = glyphs[0] if len(glyphs) == 1 else self.ligatures.get(glyphs)
        if glyph is None or glyph not in self.bitmaps:
            return None
        return bytes(self.bitmaps[glyph].imageData)


def people(label: str, bare_roles: set[str]) -> tuple[str, str] | None:
    """(role, gender) of a label without its tone: ("firefighter", "woman"), ("deaf", "man")."""
    if label in GENDERED_WORDS:
        return GENDERED_WORDS[label]
    found = GENDER_IN_LABEL.findall(label)
    if len(found) == 1:
        role = " ".join(GENDER_IN_LABEL.sub("", label).replace(":", " ").split())
        return role or "adult", found[0]
    return (label, "person") if label in bare_roles else None


def together(label: str) -> str | None:
    """The concept of a label of several people: "people wrestling", "kiss"."""
    match = TOGETHER.match(label)
    return match and (match[2] or f"people {match[1]}")


def tone(label: str) -> str:
    """The skin tone in a label; the tones of two people are joined with a plus."""
    return "+".join(TONE_IN_LABEL.findall(label)) or "none"


def read_emoji(glyphs: Glyphs, annotations: Path) -> Iterator[Emoji]:
    entries = json.loads((annotations / "en" / "data.json").read_text())
    groups = json.loads((annotations / "meta" / "groups.json").read_text())
    # A label without a gender word ("firefighter") is the person of a role that has one.
    bare_roles = {
        " ".join(GENDER_IN_LABEL.sub("", entry["label"]).split())
        for entry in entries
        if entry.get("group") == PEOPLE and GENDER_IN_LABEL.search(entry["label"])
    }
    first_label: dict[bytes, str] = {}
    for entry in entries:
        in_group = entry.get("group")
        several = together(entry["label"]) if in_group == PEOPLE else None
        described = None
        if in_group == PEOPLE and several is None:
            described = people(entry["label"], bare_roles)
        role, gender = described or (None, None)
        base = several or (role or entry["label"]).removesuffix(" facing right")
        for variant in (entry, *entry.get("skins", ())):
            png = glyphs.png(variant["hexcode"])
            if png is None:
                continue
            yield Emoji(
                key=variant["hexcode"].lower(),
                caption=variant["label"],
                png=png,
                group=REGIONAL_INDICATORS if in_group is None else groups["groups"][str(in_group)],
                subgroup=groups["subgroups"].get(str(entry.get("subgroup")), REGIONAL_INDICATORS),
                tags=tuple(entry.get("tags", ())),
                # Equal images (flags of territories) are one concept.
                base=first_label.setdefault(png, base),
                role=role,
                gender=gender,
                tone=tone(variant["label"]),
            )


def lowest(names: set[str], share: float, salt: str) -> set[str]:
    """The fraction `share` of `names` with the lowest hashes, which never changes."""

    def rank(name: str) -> str:
        return sha256(f"{salt}/{name}")

    return set(sorted(names, key=rank)[: round(share * len(names))])


def composition(emoji: list[Emoji]) -> Split:
    """Roles that exist as man, woman and person in all six tones, with captions that say so."""
    grid: dict[str, dict[tuple[str, str], Emoji]] = defaultdict(dict)
    for one in emoji:
        plain = TONE_IN_LABEL.sub("", one.caption)
        if one.role and one.gender and not set(":,") & set(plain) and plain not in GENDERED_WORDS:
            grid[one.role][one.gender, one.tone] = one
    cells = {
        f"{role}/{gender}/{tone}": one
        for role, cell in grid.items()
        if len(cell) == 3 * len(TONES)
        for (gender, tone), one in cell.items()
    }
    held_out = lowest(set(cells), TEST_TONE_SHARE, "composition")
    train = [one for name, one in cells.items() if name not in held_out]
    test = [one for name, one in cells.items() if name in held_out]
    seen = {word for one in train for word in WORD.findall(one.caption.lower())}
    unseen = {word for one in test for word in WORD.findall(one.caption.lower())} - seen
    if unseen:
        raise SystemExit(f"words of the composition test captions unseen in training: {unseen}")
    roles = len({one.role for one in cells.values()})
    return Split(
        description=f"People: {roles} roles x man, woman, person x 6 skin tones. 20% of the "
        "combinations are held out by hash: every word is seen in training, the combination never",
        train=tuple(one.key for one in train),
        test=tuple(one.key for one in test),
    )


def concept(emoji: list[Emoji]) -> Split:
    held_out = lowest({one.base for one in emoji}, TEST_BASE_SHARE, "concept")
    return Split(
        description="Everything. 10% of the base emoji are held out by hash with all their "
        "variants: what this set alone cannot teach anyone to draw",
        train=tuple(one.key for one in emoji if one.base not in held_out),
        test=tuple(one.key for one in emoji if one.base in held_out),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("font", type=Path, help="NotoColorEmoji.ttf with a CBDT table")
    parser.add_argument("annotations", type=Path, help="unpacked npm package emojibase-data")
    parser.add_argument("out", help="directory to write the shard set to")
    options = parser.parse_args()

    glyphs = Glyphs(options.font)
    emoji = list(read_emoji(glyphs, options.annotations))
    package = json.loads((options.annotations / "package.json").read_text())
    splits = {"composition": composition(emoji), "concept": concept(emoji)}
    manifest = write_shards(
        in_splits((one.sample() for one in emoji), splits),
        options.out,
        name="emoji",
        licence="OFL-1.1 (images), MIT and Unicode-3.0 (captions); see LICENSES/",
        provenance={
            "built by": "data/build_emoji.py",
            "images": f"Noto Color Emoji, {glyphs.version}",
            "images sha256": sha256_file(options.font),
            "captions": f"{package['name']} {package['version']} (CLDR short names and keywords)",
            "captions sha256": sha256_file(options.annotations / "en" / "data.json"),
        },
        shard_size=SHARD_SIZE,
        fields={
            "png": "136x128 palette or RGBA PNG, the font's own bytes, transparent background",
            "txt": "caption: the CLDR short name",
            "json": "group, subgroup, base, role, gender, tone, tags",
        },
        splits={name: split.description for name, split in splits.items()},
        compress=True,
    )
    for name, split in manifest.splits.items():
        print(f"{name}: {sum(split.train)} train, {sum(split.test)} test. {split.description}")
    print(f"{len(emoji)} pairs, {manifest.bytes:,} bytes of shards")


if __name__ == "__main__":
    main()
