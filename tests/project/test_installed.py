"""What `pip install .` installs: one import name, and a client that needs five small libraries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution, requires
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.client.fake_inference import FakeInference, serving, tokens
from tests.project.source import ROOT

LIBRARIES = ("grpcio", "protobuf", "typer", "rich", "pydantic")
OTHERS = ("torch", "ray", "nixl", "zmq", "psutil", "transformers", "numpy")  # libraries of a node
TRAPS = ("cluster.py", "router.py", "worker.py", "engine/__init__.py", "deploy/__init__.py", "benchmarks.py")
APPLICATION = f"""
import sys, cluster, router, worker, engine
import baton
with baton.Client(sys.argv[1]) as client:
    print([token.id for token in client.stream([1, 2, 3], max_tokens=3)])
print(sorted(set({OTHERS!r}) & set(sys.modules)))
print(cluster.MINE and router.MINE and worker.MINE and engine.MINE, baton.Overloaded("full").message)
"""


def _with_what_they_need(names: tuple[str, ...]) -> set[str]:
    """These distributions and their requirements, without extras."""
    found, waiting = set[str](), list(names)
    while waiting:
        name = waiting.pop().lower()
        if name not in found:
            found.add(name)
            plain = [requirement for requirement in requires(name) or () if ";" not in requirement]
            waiting += [re.split(r"[^\w.-]", requirement)[0] for requirement in plain]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns("__pycache__", ".*", "build", "*.egg-info", "tests", "benchmarks", "docs")
    shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=leave)
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "checkout", check=True, capture_output=True)
    return next(folder.glob("baton_serve-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new virtual environment that has Baton, its five libraries, and nothing else.

    The libraries are links to those of this environment; pip then finds every requirement of the wheel met.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in _with_what_they_need(LIBRARIES):
        library = distribution(name)
        for top in {file.parts[0] for file in library.files or () if file.parts[0] != ".."} - {"__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(library.locate_file(top))))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-index", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def _run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def _application(folder: Path) -> None:
    """An application whose modules have the names of Baton's packages."""
    for trap in TRAPS:
        (folder / trap).parent.mkdir(exist_ok=True)
        (folder / trap).write_text("MINE = True\n")
    (folder / "application.py").write_text(APPLICATION)


def test_a_wheel_holds_one_import_name_and_the_license(wheel: Path) -> None:
    files = ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in files if ".dist-info/" not in name} == {"baton"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)
    inside = {name.split("/")[1] for name in files if name.startswith("baton/")}
    assert {"router", "prefill_worker", "decode_worker", "kv_transfer", "deploy", "engine", "py.typed"} <= inside
    assert "harness" not in inside


def test_a_wheel_holds_the_page(wheel: Path) -> None:
    inside = {Path(name).name for name in ZipFile(wheel).namelist() if name.startswith("baton/router/page/static/")}
    assert inside == {path.name for path in (ROOT / "router" / "page" / "static").iterdir()}


def test_a_client_works_beside_an_application_with_modules_of_the_same_names(installed: Path, tmp_path: Path) -> None:
    _application(tmp_path)
    with serving(FakeInference([tokens(7, 8, 9)])) as (address, _):
        done = _run(tmp_path, installed / "python", "application.py", address)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[7, 8, 9]", "[]", "True full"]


@pytest.mark.parametrize("command", [("baton",), ("python", "-m", "baton")])
def test_without_the_libraries_of_a_node_the_command_says_how_to_install_them(
    installed: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    _application(tmp_path)
    program, *words = command
    assert _run(tmp_path, installed / program, *words, "--help").returncode == 0
    done = _run(tmp_path, installed / program, *words, "up")
    assert done.returncode == 1
    assert "pip install '.[node]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_baton_is_fast_and_loads_no_library() -> None:
    code = (
        "import sys, time\n"
        "began = time.perf_counter(); import baton; took_s = time.perf_counter() - began\n"
        f"print(took_s < 0.3, sorted({{'grpc', *{OTHERS!r}}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True []\n", done.stderr
