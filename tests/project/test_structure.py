"""The structure keeps its own rules: who may import whom, what is pure, how large a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CARD = ("router", "prefill_worker", "decode_worker", "kv_transfer", "deploy")  # folders at the top, linked into baton/
PACKAGES = ("baton", "benchmarks", "tests")
PURE = [
    *(path for path in (ROOT / "baton" / "protocol").glob("*.py") if path.name != "codec.py"),
    *(ROOT / "baton" / "config").glob("*.py"),
    *(ROOT / "router" / "policy").rglob("*.py"),
    *(
        ROOT / "baton" / "simulator" / name
        for name in ("events.py", "network.py", "worker.py", "simulation.py", "result.py")
    ),
    *(ROOT / "baton" / "simulator" / name for name in ("timing.py", "models.py", "trace.py", "setup.py", "search.py")),
    *(ROOT / "router" / name for name in ("dispatch.py", "explanation.py", "limits.py", "accounting.py")),
    *(
        ROOT / "router" / name
        for name in ("operation.py", "operations.py", "effects.py", "life_events.py", "page_audit.py")
    ),
    *(ROOT / "router" / name for name in ("automation.py", "recent_answers.py", "membership.py", "quarantine.py")),
    *(ROOT / "router" / name for name in ("attempt.py", "breaker.py", "peer_links.py")),
    *(ROOT / "router" / name for name in ("core.py", "commands.py", "lifecycle.py", "record.py")),
    *(ROOT / "router" / name for name in ("stream.py", "detokenizer.py")),
    *(ROOT / "router" / name for name in ("access.py", "worker_frames.py", "complaints.py")),
    *(ROOT / "router" / name for name in ("unclaimed.py", "unserved.py", "claims.py", "hearing.py", "attempt.py")),
    *(
        ROOT / "baton" / "engine" / name
        for name in ("sequence.py", "kv_pages.py", "page_table.py", "batch.py", "step.py")
    ),
    *(
        ROOT / "baton" / "engine" / name
        for name in ("model_config.py", "graph_sizes.py", "device_memory.py")
    ),
    *(ROOT / "baton" / "engine" / "race" / name for name in ("noise.py", "definition.py", "draw.py")),
    *(ROOT / "baton" / "engine" / name for name in ("checkpoint_tensors.py", "families.py")),
    *(ROOT / "prefill_worker").glob("*.py"),
    *(ROOT / "decode_worker").glob("*.py"),
    *(
        ROOT / "baton" / "worker" / name
        for name in ("role.py", "state.py", "token_output.py", "reports.py", "outbound.py")
    ),
    *(ROOT / "deploy" / name for name in ("condition.py", "recovery.py")),
    *(ROOT / "baton" / "worker" / name for name in ("role_switch.py", "stalled_handoffs.py", "write_watch.py")),
]
IMPURE = {
    "torch",
    "grpc",
    "google",
    "ray",
    "zmq",
    "nixl",
    "asyncio",
    "threading",
    "time",
    "socket",
    "os",
    "logging",
    "subprocess",
}

# A room of baton/ → the rooms it may import. A room stands below all that import it, so nothing runs back up.
ALLOWED = {
    "protocol": set(),
    "builtin_model": set(),
    "config": {"protocol"},
    "client": {"protocol"},
    "engine": {"protocol"},
    "kv_transfer": {"protocol"},
    "prefill_worker": {"protocol", "engine", "worker"},
    "decode_worker": {"protocol", "engine", "worker"},
    "router": {"protocol", "config", "engine"},
    "worker": {"protocol", "config", "engine", "kv_transfer", "prefill_worker", "decode_worker"},
    "simulator": {"protocol", "engine", "worker", "router"},
    "deploy": {"protocol", "config", "client", "engine", "kv_transfer", "worker", "router", "builtin_model"},
    "cli": {"protocol", "config", "client", "simulator", "deploy", "builtin_model"},
}
ONLY_IN = {
    "ray": {
        *(f"deploy/{name}.py" for name in ("launcher", "placement_groups", "ray_start")),
        *("baton/worker/actor.py", "router/actor.py"),
    },
    "nixl": {"kv_transfer/nixl_library.py"},
    "triton": {f"baton/engine/race/{name}.py" for name in ("arithmetic", "kernels", "launchable", "settle")},
    "flashinfer": {"baton/engine/attention/flashinfer.py", "baton/engine/models/cuda_layers.py"},
}
REQUEST_WAY = [
    "router/server.py",
    "router/driver.py",
    "router/core.py",
    "router/lifecycle.py",
    "router/dispatch.py",
    "router/policy/predicted_latency.py",
    "router/worker_link.py",
    "baton/worker/loop.py",
    "prefill_worker/role.py",
    "baton/worker/outbound.py",
    "kv_transfer/nixl.py",
    "decode_worker/role.py",
    "decode_worker/inbound.py",
    "router/stream.py",
]


def _imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Every Python file of ours below a folder, by its path without links."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith((".", "__pycache__")):
            yield from _files(path)
        elif path.suffix == ".py" and "protocol/v1" not in path.as_posix():
            yield path.resolve()


def _text_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder in which a command or an import may stand."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".") and path.name != "build":
            yield from _text_files(path)
        elif path.suffix in (".py", ".sh", ".md", ".toml", ".yaml", ".service") or path.name in (
            "Makefile",
            "Dockerfile",
        ):
            yield path


def _ours() -> list[Path]:
    return [path for package in PACKAGES for path in _files(ROOT / package)]


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_pure_module_does_no_io(path: Path) -> None:
    assert not {name.split(".")[0] for name in _imports(path)} & IMPURE


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    for path in _files(ROOT / "baton" / room):
        used = {name.split(".")[1] for name in _imports(path) if name.startswith("baton.")}
        assert used <= ALLOWED[room] | {room}, path


def test_every_room_has_its_rules() -> None:
    assert {path.name for path in (ROOT / "baton").iterdir() if path.is_dir() and any(_files(path))} == set(ALLOWED)


def test_the_folders_at_the_top_are_the_package_they_are_linked_into() -> None:
    for name in CARD:
        assert (ROOT / "baton" / name).readlink() == Path("..") / name


def test_no_module_of_ours_has_a_second_name() -> None:
    """`import router` would work in a checkout, beside `baton.router`, and make every class of it twice."""
    name = rf"(?:{'|'.join(ALLOWED)})\b(?:\.\w+)*"
    ways = (rf"\bfrom {name} import ", rf"(?<!baton )\bimport {name}(?: as \w+)?(?:$|[;,\"\\])", rf"-m {name}")
    second_name = re.compile("|".join(ways), re.MULTILINE)
    for path in _text_files(ROOT):
        assert second_name.search(path.read_text()) is None, path


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_one_home(library: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in _ours()
        if not path.is_relative_to(ROOT / "tests") and library in {name.split(".")[0] for name in _imports(path)}
    }
    assert users <= ONLY_IN[library]


def test_files_and_functions_fit() -> None:
    for path in _ours():
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


def test_importing_the_pure_half_loads_no_heavy_library() -> None:
    code = (
        "import sys, baton, baton.router.core, baton.router.lifecycle\n"
        "import baton.prefill_worker.role, baton.decode_worker.role\n"
        "heavy = {'torch', 'grpc', 'ray', 'zmq', 'nixl', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_dependency_is_explained() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in wanted:
        name = re.split("[>=[]", requirement)[0]
        assert f"`{name}`" in text, name
        assert "<" in requirement or "==" in requirement, f"{name} has no upper bound"
