"""Limits of files, functions and dependencies, and the tour of the architecture."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.project.source import ROOT, project_files

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_P90_FUNCTION_LINES = 25  # the 90th percentile in each folder at the top


def _function_lines(path: Path) -> dict[str, int]:
    """The number of lines of each function in a file, by `path: name`."""
    nodes = ast.walk(ast.parse(path.read_text()))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    name = path.relative_to(ROOT).as_posix()
    return {f"{name}: {node.name} ({node.lineno})": (node.end_lineno or 0) - node.lineno + 1 for node in functions}


def _check(lines: dict[str, int], limit: int) -> None:
    too_long = sorted(f"{name}: {count} lines" for name, count in lines.items() if count > limit)
    assert not too_long, "\n".join((f"more than {limit} lines:", *too_long))


def test_no_file_is_longer_than_the_limit() -> None:
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in project_files()}
    _check(lines, MAX_FILE_LINES)


def test_no_function_is_longer_than_the_limit() -> None:
    lines = {name: count for path in project_files() for name, count in _function_lines(path).items()}
    _check(lines, MAX_FUNCTION_LINES)


def test_nine_of_ten_functions_of_a_folder_are_short() -> None:
    by_folder: dict[str, list[int]] = {}
    for path in project_files():
        by_folder.setdefault(path.relative_to(ROOT).parts[0], []).extend(_function_lines(path).values())
    p90 = {folder: sorted(lines)[len(lines) * 9 // 10] for folder, lines in by_folder.items() if lines}
    _check(p90, MAX_P90_FUNCTION_LINES)


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
        if requirement.startswith(f"{project['name']}["):
            continue
        name = re.split("[>=[]", requirement)[0]
        assert f"`{name}`" in text, name
        assert "<" in requirement or "==" in requirement, f"{name} has no upper bound"
