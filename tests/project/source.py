"""The project's own source: its files and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("baton", "benchmarks", "tests")


def python_files(folder: Path) -> Iterator[Path]:
    """Every Python file of the project below a folder, by its path without links; generated code is left out."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith((".", "__pycache__")):
            yield from python_files(path)
        elif path.suffix == ".py" and "protocol/v1" not in path.as_posix():
            yield path.resolve()


def text_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder that may contain a command or an import."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".") and path.name != "build":
            yield from text_files(path)
        elif path.suffix in (".py", ".sh", ".md", ".toml", ".yaml", ".service") or path.name in (
            "Makefile",
            "Dockerfile",
        ):
            yield path


def project_files() -> list[Path]:
    """Every Python file of the project."""
    return [path for package in PACKAGES for path in python_files(ROOT / package)]


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found
