"""Links, sections, files and commands named in the documents exist, and the README keeps its limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer

from baton.cli.main import app
from baton.engine.families.table import FAMILIES as SUPPORTED
from tests.checkpoints import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|sh|proto|yaml|toml|service))`")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|`|\b[A-Z_]+=\S+ )baton ((?:[a-z]+ ?)+)([^`#\n]*)", re.MULTILINE)
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def _anchors(path: Path) -> set[str]:
    """The fragments of a document's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@each_document
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        name, _, fragment = link.partition("#")
        if ":" in name:
            continue
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not fragment or fragment in _anchors(target), f"{path.name} links to {link}"


@pytest.fixture(scope="module")
def project_paths() -> list[str]:
    """Every file of the project, as "/" and its path."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return [f"/{path.relative_to(ROOT).as_posix()}" for folder in folders for path in folder.rglob("*.*")]


@each_document
def test_every_file_that_is_named_is_there(path: Path, project_paths: list[str]) -> None:
    """A file is named by its path from the root or the end of that path; `baton/` has links to folders of the root."""
    for name in NAMED.findall(path.read_text()):
        ends = (f"/{name}", f"/{name.removeprefix('baton/')}")
        assert any(known.endswith(ends) for known in project_paths), f"{path.name} names {name}"


@each_document
def test_every_command_that_is_shown_exists_with_its_options(path: Path) -> None:
    known: Any = typer.main.get_command(app)
    for words, rest in COMMAND.findall(path.read_text()):
        command = known
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, f"{path.name} shows baton {words}"
            command = command.commands[word]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in options, f"{path.name} shows baton {words}{option}"


def test_the_readme_links_to_every_document() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(README)}
    assert {path.relative_to(ROOT).as_posix() for path in DOCUMENTS} - linked == {"README.md"}


def test_the_readme_can_be_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= 120
    programs = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert programs and max(len(program.splitlines()) for program in programs) <= 12


@pytest.mark.parametrize(
    ("head", "count", "row"),
    [("why", 5, r"\| \*\*.+\(tests/\S+\.py\) \|"), ("figure", 6, r".+ \| `python -m \S+.*` \|")],
)
def test_a_reason_names_its_test_and_a_figure_its_command(head: str, count: int, row: str) -> None:
    (rows,) = re.findall(rf"^\| {head} .*\n\| --- .*\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert len(rows.splitlines()) == count
    assert all(re.fullmatch(row, line) for line in rows.splitlines()), rows


def test_the_readme_states_the_support_of_every_family() -> None:
    assert {f"{architecture}ForCausalLM" for architecture, _ in FAMILIES.values()} == set(SUPPORTED)
    table = README[README.index("| family |") :]
    for family in FAMILIES:
        name = re.sub(r"(\d)", r"[ -]?\1", family)
        assert re.search(rf"^\| .*\b{name}\b", table, re.IGNORECASE | re.MULTILINE), family


def test_the_picture_has_colours_for_light_and_dark_and_words_for_screen_readers() -> None:
    text = (ROOT / "docs" / "baton.svg").read_text()
    assert {child.tag.rpartition("}")[2] for child in ElementTree.fromstring(text)} >= {"title", "desc"}
    coloured = re.compile(r"([\w-]+) \{ [^}]*#[0-9a-f]{6}")
    light, dark = (set(coloured.findall(part)) for part in text.split("@media (prefers-color-scheme: dark)"))
    assert light == dark
    assert len(light) > 5
