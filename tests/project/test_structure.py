"""The structure keeps its own rules: how large a file may be, what the README tells, which dependencies there are."""

from __future__ import annotations

import ast
import re

from tests.project.source import ROOT, ours

REQUEST_WAY = [
    "router/server.py",
    "router/driver.py",
    "router/core/core.py",
    "router/core/lifecycle.py",
    "router/core/dispatch.py",
    "router/policy/predicted_latency.py",
    "router/worker_link.py",
    "baton/worker/loop.py",
    "prefill_worker/role.py",
    "baton/worker/core/handoff_source.py",
    "kv_transfer/nixl.py",
    "decode_worker/role.py",
    "decode_worker/handoff_receiver.py",
    "router/core/stream.py",
]


def test_files_and_functions_fit() -> None:
    for path in ours():
        if path.is_relative_to(ROOT / "tests"):
            continue
        text = path.read_text()
        assert path.name == "words.py" or len(text.splitlines()) <= 320, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 70, f"{path}: {node.name}"


def test_proto_is_no_package() -> None:
    """PyPI's proto-plus owns the module name."""
    assert not list((ROOT / "proto").rglob("*.py"))


def test_the_way_of_a_request_is_fourteen_files_and_the_tour_lists_them() -> None:
    assert len(REQUEST_WAY) <= 14
    tour = (ROOT / "docs" / "architecture.md").read_text()
    for name in REQUEST_WAY:
        assert (ROOT / name).is_file()
        assert f"{name}`" in tour


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
