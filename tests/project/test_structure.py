"""Limits of files, functions and dependencies, and the tour of the architecture."""

from __future__ import annotations

import ast
import re

from tests.project.source import ROOT, project_files


def test_files_and_functions_fit() -> None:
    for path in project_files():
        if path.is_relative_to(ROOT / "tests"):
            continue
        text = path.read_text()
        assert path.name == "words.py" or len(text.splitlines()) <= 320, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 70, f"{path}: {node.name}"


def test_proto_is_not_a_package() -> None:
    """PyPI's proto-plus owns the module name."""
    assert not list((ROOT / "proto").rglob("*.py"))


def test_the_tour_along_a_request_has_at_most_fourteen_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (tour,) = re.findall(r"^### A tour along one request\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    files = re.findall(r"^\| `(\S+\.py)` \|", tour, re.MULTILINE)
    assert 0 < len(files) <= 14
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_every_dependency_is_explained() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in wanted:
        if requirement == f"{project['name']}[node]":
            continue
        name = re.split("[>=[]", requirement)[0]
        assert f"`{name}`" in text, name
        assert "<" in requirement or "==" in requirement, f"{name} has no upper bound"
