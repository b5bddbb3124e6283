"""Shells log, commands print: the path of a module decides which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.project.source import ROOT, project_files, python_files
from tests.project.test_imports import ALLOWED

# The command line and what is run by hand. `deploy` has commands and shells: only a module that is run may print.
COMMANDS = ("cli", "builtin_model", "harness")
PRINTS = {"print", "print_exc"}


def _is_run(path: Path, tree: ast.Module) -> bool:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return path.parts[len(ROOT.parts)] == "deploy" and "__name__" in names


def _printed(tree: ast.Module) -> set[str]:
    """Calls of `print`, and uses of the standard streams, which bypass the log."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in PRINTS:
                found.add(name)
            case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr" as name):
                found.add(f"sys.{name}")
    return found


@pytest.mark.parametrize("package", [name for name in ALLOWED if "." not in name and name not in COMMANDS])
def test_only_commands_print(package: str) -> None:
    for path in python_files(ROOT / "baton" / package):
        tree = ast.parse(path.read_text())
        assert _is_run(path, tree) or not _printed(tree), f"{path.relative_to(ROOT)} prints; let it log (baton/logs.py)"


def test_the_rule_finds_what_prints() -> None:
    for code in ("print('a')", "traceback.print_exc()", "sys.stderr.write('a')", "write(file=sys.stdout)"):
        assert _printed(ast.parse(code)), code
    assert not _printed(ast.parse("log.info('print')"))


def test_only_the_log_itself_makes_loggers_and_handlers() -> None:
    """All log lines go through one logger."""
    users = {
        path.relative_to(ROOT).as_posix()
        for path in project_files()
        if not path.is_relative_to(ROOT / "tests")
        if "getLogger" in path.read_text() or "StreamHandler" in path.read_text() or "FileHandler" in path.read_text()
    }
    assert users == {"baton/logs.py"}
