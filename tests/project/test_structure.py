"""The structure keeps its own rules: who may import whom, what is pure, how large a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [
    "baton",
    "builtin_model",
    "cluster",
    "router",
    "engine",
    "worker",
    "prefill_worker",
    "decode_worker",
    "kv_transfer",
    "simulator",
    "deploy",
    "benchmarks",
    "tests",
]
PURE = [
    *(ROOT / "cluster").glob("*.py"),
    *(ROOT / "router" / "policy").rglob("*.py"),
    *(ROOT / "simulator" / name for name in ("events.py", "network.py", "worker.py", "simulation.py", "result.py")),
    *(ROOT / "simulator" / name for name in ("timing.py", "models.py", "trace.py", "setup.py", "search.py")),
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
    *(ROOT / "engine" / name for name in ("sequence.py", "kv_pages.py", "page_table.py", "batch.py", "step.py")),
    *(ROOT / "engine" / name for name in ("model_config.py", "graph_sizes.py", "device_memory.py")),
    ROOT / "engine" / "checkpoint_tensors.py",
    *(ROOT / "prefill_worker").glob("*.py"),
    *(ROOT / "decode_worker").glob("*.py"),
    *(ROOT / "worker" / name for name in ("role.py", "state.py", "token_output.py", "reports.py", "outbound.py")),
    *(ROOT / "deploy" / name for name in ("condition.py", "recovery.py")),
    *(ROOT / "worker" / name for name in ("role_switch.py", "stalled_handoffs.py", "write_watch.py")),
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

# package → what of ours it may import, beside itself
ALLOWED = {
    "cluster": set(),
    "engine": {"cluster"},
    "kv_transfer": {"cluster", "engine.kv_pages"},
    "prefill_worker": {
        "cluster",
        "engine",
        "worker.role",
        "worker.state",
        "worker.token_output",
        "worker.outbound",
        "worker.stalled_handoffs",
    },
    "decode_worker": {
        "cluster",
        "engine",
        "worker.role",
        "worker.state",
        "worker.token_output",
        "worker.outbound",
        "worker.stalled_handoffs",
    },
    "router": {
        "cluster",
        "engine.tokenizer",
        "engine.checkpoint",
        "engine.model_config",
        "baton.wire",
        "baton.logs",
        "baton.v1",
    },
    "simulator": {"cluster", "router", "engine", "worker", "prefill_worker", "decode_worker"},
    "worker": {"cluster", "engine", "kv_transfer", "prefill_worker", "decode_worker", "baton.wire", "baton.logs"},
}
ONLY_IN = {
    "ray": {
        *(f"deploy/{name}.py" for name in ("launcher", "placement_groups", "ray_start")),
        *("worker/actor.py", "router/actor.py"),
    },
    "nixl": {"kv_transfer/nixl_library.py"},
    "flashinfer": {"engine/attention/flashinfer.py", "engine/models/cuda_layers.py"},
}
REQUEST_WAY = [
    "router/server.py",
    "router/driver.py",
    "router/core.py",
    "router/lifecycle.py",
    "router/dispatch.py",
    "router/policy/predicted_latency.py",
    "router/worker_link.py",
    "worker/loop.py",
    "prefill_worker/role.py",
    "worker/outbound.py",
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


def _ours() -> list[Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [path for path in files if "baton/v1" not in path.as_posix()]


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_pure_module_does_no_io(path: Path) -> None:
    names = _imports(path)
    assert not {name.split(".")[0] for name in names} & IMPURE
    assert "baton.logs" not in names


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for name in _imports(path):
            top = name.split(".")[0]
            if top not in PACKAGES or top == package:
                continue
            allowed = any(
                name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in ALLOWED[package]
            )
            assert allowed or name in ALLOWED[package], f"{path.relative_to(ROOT)} imports {name}"


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


def test_the_way_of_a_request_is_fourteen_files_and_the_readme_lists_them() -> None:
    assert len(REQUEST_WAY) <= 14
    readme = (ROOT / "README.md").read_text()
    for name in REQUEST_WAY:
        assert (ROOT / name).is_file()
        assert name in readme


def test_importing_the_pure_half_loads_no_heavy_library() -> None:
    code = (
        "import sys, router.core, router.lifecycle, prefill_worker.role, decode_worker.role, baton\n"
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
