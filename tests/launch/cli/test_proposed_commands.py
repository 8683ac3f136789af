"""Every command that a message, a help text or the documentation proposes can be typed."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.exceptions import TyperException

from launch.cli.main import app
from launch.pipeline.config import load_pipeline
from trainer import recipe

ROOT = Path(__file__).parents[3]
PACKAGES = ("launch", "trainer", "data_pipeline", "evaluation", "mezzotint", "models")
SHELL = re.compile(r"^\s*(?:\$ )?(?:\w+=\S+ )*(?:\S*/)?mezzotint (.*)")
INLINE = re.compile(r"`(?:\w+=\S+ )*(?:\S*/)?mezzotint ([^`]*)`")
MESSAGE = re.compile(r"(?:^|[`\s(\]])mezzotint ([a-z][^`\n;)]*)")
OPTIONAL = r"--[\w-]+(?: \w+)?|(?:model\.)?KEY=VALUE"
INCOMPLETE = ("Missing ", "Option '--from-noise' requires")
"""How errors begin about a command that is only named."""
RECIPE_COMMANDS = {"train": recipe.load, "check": recipe.load, "run": load_pipeline}


@dataclass(frozen=True)
class Proposed:
    """A command as it is written somewhere, without `mezzotint`."""

    source: str
    text: str
    whole: bool
    """Whether it is meant to be typed as it stands; else it may only be named."""

    @property
    def words(self) -> list[str]:
        text = re.sub(rf"\[({OPTIONAL})\](\.\.\.)?", r"\1", self.text)
        text = re.sub(r"(--[\w-]+) [A-Z]\b", r"\1 1", text)  # a number
        return shlex.split(re.sub(r"\bCODE\b", "diffusers", text), comments=True)


def in_messages() -> Iterator[Proposed]:
    """In the texts of the code that are no docstrings; a value that is put in becomes 1."""
    for path in (path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in node.values
        }
        inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in (node for node in ast.walk(tree) if id(node) not in inner):
            for text in text_of(node):
                for found in MESSAGE.findall(text):
                    command = re.split(r"\[/\]|, | \([A-Za-z]|  |%s(?=\w)", found)[0]
                    source = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield Proposed(source, command.rstrip(". "), "[bold]" in text)


def text_of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "1" for p in parts)


def in_documents() -> Iterator[Proposed]:
    """In code blocks and between backticks of the documentation."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        fenced, name = False, path.relative_to(ROOT)
        lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        for line in lines:
            if line.startswith("```"):
                fenced = not fenced
            elif fenced and (found := SHELL.match(line)):
                yield Proposed(str(name), found.group(1), whole=True)
            elif not fenced:
                yield from (Proposed(str(name), text, whole=False) for text in INLINE.findall(line))


MESSAGES, DOCUMENTS = list(in_messages()), list(in_documents())


def parse(proposed: Proposed) -> list[str]:
    """Parse a command by the application; returns its name, subcommand and words.

    Raises:
        Unknown: no such command.
        TyperException: no such option, a value of another type, or one is missing.
    """
    command, names, words = typer.main.get_command(app), ["mezzotint"], proposed.words
    while hasattr(command, "commands"):
        if not words and not proposed.whole:
            return names
        if not words or words[0] not in command.commands:
            raise Unknown(f"{names} {words}")
        names.append(words[0])
        command = command.commands[words.pop(0)]
    try:
        command.make_context(names[-1], list(words))
    except TyperException as error:
        if proposed.whole or not str(error).startswith(INCOMPLETE):
            raise
    return [*names, *words]


class Unknown(Exception):
    """There is no such command."""


def test_commands_are_found_in_both():
    assert len(MESSAGES) > 50
    assert len(DOCUMENTS) > 80


@pytest.mark.parametrize("proposed", [*MESSAGES, *DOCUMENTS], ids=lambda each: each.source)
def test_a_proposed_command_exists_and_parses(proposed, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = parse(proposed)
    files = [word for word in words if word.startswith("recipes/")]
    for file in files:
        assert Path(file).is_file(), file
    settings = [word for word in words if re.match(r"[a-z_]+(\.[a-z_0-9]+)*=", word)]
    if files and words[1] in RECIPE_COMMANDS and "KEY=VALUE" not in settings:
        read = RECIPE_COMMANDS[words[1]]
        read(Path(files[0]), settings)


@pytest.mark.parametrize(
    "text", ["data pock X", "train recipes/emoji_dvae.yaml --steps 3", "sample X --steps many"]
)
def test_the_check_finds_what_cannot_be_typed(text):
    with pytest.raises((Unknown, TyperException)):
        parse(Proposed("here", text, whole=True))
