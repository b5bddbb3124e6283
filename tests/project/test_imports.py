"""Imports: which package may import which, what is pure, and the one name of every module."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.source import ROOT, imports, project_files, python_files, text_files

# Each package of baton/ and what it may import: packages or single modules. A package names only those above it in the
# table, so there are no import cycles.
ALLOWED: dict[str, tuple[str, ...]] = {
    "protocol": (),
    "metrics": (),
    "builtin_model": (),
    "config": ("protocol",),
    "client": ("protocol",),
    "engine": ("protocol",),
    "kv_transfer": ("protocol",),
    "router.policy": ("protocol",),
    "router.core": ("protocol", "config", "router.policy"),
    "access": ("protocol", "config"),
    "links": ("protocol",),
    "http": ("protocol", "metrics"),
    "tracing": ("protocol", "config"),
    "router": (
        *("protocol", "metrics", "config", "router.policy", "router.core", "access", "links", "http", "tracing"),
        "engine.checkpoint",
    ),
    "gateway.core": ("protocol", "metrics.metric", "metrics.values"),
    "gateway": (
        *("protocol", "metrics", "config", "access", "links", "http", "tracing", "gateway.core"),
        *("engine.tokenizer", "engine.checkpoint", "engine.model_config"),
    ),
    "worker.core": ("protocol", "config", "engine"),
    "prefill_worker": ("protocol", "engine", "worker.core"),
    "decode_worker": ("protocol", "engine", "worker.core"),
    "worker": (
        "protocol",
        "config",
        "engine",
        "kv_transfer",
        "links",
        "worker.core",
        "prefill_worker",
        "decode_worker",
    ),
    "simulator": (
        *("protocol", "config", "engine", "router.policy", "router.core", "gateway.core"),
        *("worker.core", "worker.session", "decode_worker"),
    ),
    "deploy": (
        *("protocol", "config", "client", "engine", "kv_transfer", "builtin_model", "metrics"),
        *(
            "access",
            "links.keys",
            "router.policy",
            "router.actor",
            "gateway.actor",
            "gateway.template_files",
            "tracing",
            "worker.actor",
        ),
    ),
    "cli": ("protocol", "config", "client", "simulator", "deploy", "builtin_model", "access.access"),
    "harness": (  # what tests and benchmarks share; no room of the product imports it
        *("protocol", "config", "client", "engine", "kv_transfer", "simulator"),
        *("router", "router.core", "router.policy", "gateway", "gateway.core", "worker", "worker.core"),
        *("access", "links"),
    ),
}
# These packages, and everything they import, read no clock, socket or file and load no torch.
PURE = (
    "protocol",
    "config",
    "router.policy",
    "router.core",
    "gateway.core",
    "worker.core",
    "prefill_worker",
    "decode_worker",
    "simulator",
)
CODEC = ("baton/protocol/codec.py", "baton/protocol/conversion.py")  # They turn our types into protobuf's, without I/O
PURE_FILES = (  # in packages that are not pure
    *("deploy/condition.py", "deploy/recovery.py"),
    *(f"baton/engine/{name}.py" for name in ("checkpoint_tensors", "fp8", "model_config", "rope_config")),
    *(f"baton/engine/race/{name}.py" for name in ("noise", "definition", "draw")),
    *(f"baton/metrics/{name}.py" for name in ("metric", "values", "encoder", "table", "gateway_table", "router_table")),
    *("router/worker_metrics.py", "router/discovery.py"),
    *("baton/http/errors.py", "baton/http/response.py", "baton/http/routes.py"),
    *(f"baton/gateway/http/{name}.py" for name in ("answer", "answers", "ask", "chat", "common_fields", "completions")),
    *("router/request_phases.py", *(f"router/page/{name}.py" for name in ("history", "origin", "snapshots", "tracks"))),
    *(f"baton/gateway/http/{name}.py" for name in ("models", "parameters", "streamed", "token_words", "whole")),
)
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

ONLY_IN = {  # folders and files
    "ray": (
        "deploy",
        "baton/worker/actor.py",
        "baton/worker/rank_actor.py",
        "baton/gateway/actor.py",
        "router/actor.py",
    ),
    "opentelemetry": ("baton/tracing",),
    "nixl": ("kv_transfer/nixl_library.py",),
    "prometheus_client": ("baton/metrics/exposition.py",),
    "triton": ("baton/engine/race",),
    "flashinfer": ("baton/engine/attention/flashinfer.py", "baton/engine/models/cuda_layers.py"),
}


def _package(module: str) -> str | None:
    """The package of a module of Baton; None for `baton` itself and for other modules."""
    parts = module.split(".")
    names = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
    return next((name for name in names if name in ALLOWED), None) if parts[0] == "baton" else None


def _files(package: str) -> list[Path]:
    """The files of a package, without those of packages inside it."""
    inside = [ROOT / "baton" / other.replace(".", "/") for other in ALLOWED if other.startswith(f"{package}.")]
    found = python_files(ROOT / "baton" / package.replace(".", "/"))
    return [path for path in found if not any(path.is_relative_to(folder.resolve()) for folder in inside)]


def _within(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module of Baton is in one of these packages, or is one of these modules."""
    return any(
        module == f"baton.{name}" or module.startswith(f"baton.{name}.") for name in names if name not in ALLOWED
    ) or (_package(module) in names)


def _file_of(module: str) -> Path | None:
    """The file of a module of Baton; None for a package, a name in a module, and other modules."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    return path.resolve() if module.startswith("baton.") and path.is_file() else None


def _module_of(path: Path) -> str:
    """The name by which a file of Baton is imported."""
    inside = path.relative_to(ROOT).with_suffix("")
    parts = inside.parts if inside.parts[0] == "baton" else ("baton", *inside.parts)
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    for path in _files(package):
        for name in imports(path):
            if (other := _package(name)) and other != package:
                assert _within(name, ALLOWED[package]), f"{path.relative_to(ROOT)} imports {name}"


def test_there_is_no_import_cycle() -> None:
    order = list(ALLOWED)
    for package, names in ALLOWED.items():
        assert all(order.index(_package(f"baton.{name}") or "") < order.index(package) for name in names), package


def test_every_package_has_its_rules() -> None:
    assert all(_files(package) for package in ALLOWED)
    homes = {path.name for path in (ROOT / "baton").iterdir() if path.is_dir() and any(python_files(path))}
    assert homes == {package.split(".")[0] for package in ALLOWED}


@pytest.mark.parametrize("package", PURE)
def test_a_pure_package_does_no_io_and_imports_nothing_that_does(package: str) -> None:
    seen = {ROOT / name for name in CODEC}
    waiting = [path for path in _files(package) if path not in seen]
    while waiting:
        path = waiting.pop()
        names = imports(path)
        assert not {name.split(".")[0] for name in names} & IMPURE, path.relative_to(ROOT)
        seen.add(path)
        waiting += {found for name in names if (found := _file_of(name))} - seen


@pytest.mark.parametrize("path", PURE_FILES)
def test_a_pure_file_does_no_io(path: str) -> None:
    assert not {name.split(".")[0] for name in imports(ROOT / path)} & IMPURE


def test_every_package_at_the_top_is_linked_into_baton() -> None:
    apart = {"baton", "tests", "benchmarks"}
    at_the_top = {path.parent.name for path in ROOT.glob("*/__init__.py")} - apart
    linked = {path.name: path.readlink() for path in (ROOT / "baton").iterdir() if path.is_symlink()}
    assert linked == {name: Path("..") / name for name in at_the_top}


# Folders, each with what its files may not import. Only tests/benchmarks tests the helpers of benchmarks; a test of a
# whole benchmark runs it as a process.
APART = {"benchmarks": ("tests",), "tests": ("benchmarks", "tests.benchmarks"), "baton": ("benchmarks", "tests")}


@pytest.mark.parametrize("folder", APART)
def test_tests_and_benchmarks_import_only_what_they_share(folder: str) -> None:
    for path in python_files(ROOT / folder):
        if not path.is_relative_to(ROOT / "tests" / "benchmarks"):
            for name in imports(path):
                assert not any(f"{name}.".startswith(f"{other}.") for other in APART[folder]), f"{path} imports {name}"


def test_no_module_has_a_second_name() -> None:
    """`import router` would work in a checkout beside `baton.router`, and define every class twice."""
    name = rf"(?:{'|'.join(package for package in ALLOWED if '.' not in package)})\b(?:\.\w+)*"
    ways = (rf"\bfrom {name} import ", rf"(?<!baton )\bimport {name}(?: as \w+)?(?:$|[;,\"\\])", rf"-m {name}")
    second_name = re.compile("|".join(ways), re.MULTILINE)
    for path in text_files(ROOT):
        assert second_name.search(path.read_text()) is None, path


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_one_home(library: str) -> None:
    homes = [ROOT / home for home in (*ONLY_IN[library], "tests")]
    for path in project_files():
        if library in {name.split(".")[0] for name in imports(path)}:
            assert any(path.is_relative_to(home) for home in homes), path.relative_to(ROOT)


def test_importing_the_pure_packages_loads_no_heavy_library() -> None:
    files = [path for package in PURE for path in _files(package) if path not in [ROOT / name for name in CODEC]]
    modules = [_module_of(path) for path in files]
    code = (
        f"import sys, {', '.join(modules)}\n"
        "heavy = {'torch', 'grpc', 'ray', 'zmq', 'nixl', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
