"""Rooms of the house: who may import whom, what is pure, and by which name everything is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.source import ROOT, imports, ours, python_files, text_files

AT_THE_TOP = ("router", "prefill_worker", "decode_worker", "kv_transfer", "deploy")  # and linked into baton/

# Each room of baton/ and what it may import, rooms or single modules. A room may name only those above it in the table,
# so no import runs in a circle.
ALLOWED: dict[str, tuple[str, ...]] = {
    "protocol": (),
    "builtin_model": (),
    "config": ("protocol",),
    "client": ("protocol",),
    "engine": ("protocol",),
    "kv_transfer": ("protocol",),
    "router.policy": ("protocol",),
    "router.core": ("protocol", "config", "router.policy"),
    "router.access": ("protocol", "config"),
    "router": (
        *("protocol", "config", "router.policy", "router.core", "router.access"),
        *("engine.tokenizer", "engine.checkpoint", "engine.model_config"),
    ),
    "worker.core": ("protocol", "config", "engine"),
    "prefill_worker": ("protocol", "engine", "worker.core"),
    "decode_worker": ("protocol", "engine", "worker.core"),
    "worker": ("protocol", "config", "engine", "kv_transfer", "worker.core", "prefill_worker", "decode_worker"),
    "simulator": ("protocol", "config", "engine", "router.policy", "router.core", "worker.core", "worker.role_switch"),
    "deploy": (
        *("protocol", "config", "client", "engine", "kv_transfer", "builtin_model"),
        *("router.policy", "router.access", "router.actor", "worker.actor"),
    ),
    "cli": ("protocol", "config", "client", "simulator", "deploy", "builtin_model"),
}
# In these rooms, and in all that they import, nothing reads a clock, a socket or a file, and nothing loads torch.
PURE = (
    "protocol",
    "config",
    "router.policy",
    "router.core",
    "worker.core",
    "prefill_worker",
    "decode_worker",
    "simulator",
)
CODEC = "baton/protocol/codec.py"  # turns our types into protobuf's
PURE_FILES = (  # in rooms that are not pure
    *("deploy/condition.py", "deploy/recovery.py"),
    *("baton/engine/checkpoint_tensors.py", "baton/engine/families.py"),
    *(f"baton/engine/race/{name}.py" for name in ("noise", "definition", "draw")),
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

ONLY_IN = {
    "ray": {
        *(f"deploy/{name}.py" for name in ("launcher", "placement_groups", "ray_start")),
        *("baton/worker/actor.py", "router/actor.py"),
    },
    "nixl": {"kv_transfer/nixl_library.py"},
    "triton": {f"baton/engine/race/{name}.py" for name in ("arithmetic", "kernels", "launchable", "settle")},
    "flashinfer": {"baton/engine/attention/flashinfer.py", "baton/engine/models/cuda_layers.py"},
}


def _room(module: str) -> str | None:
    """The room of a module of ours; None for `baton` itself and for modules of others."""
    parts = module.split(".")
    names = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
    return next((name for name in names if name in ALLOWED), None) if parts[0] == "baton" else None


def _files(room: str) -> list[Path]:
    """The files of a room, without those of rooms inside it."""
    inside = [ROOT / "baton" / other.replace(".", "/") for other in ALLOWED if other.startswith(f"{room}.")]
    found = python_files(ROOT / "baton" / room.replace(".", "/"))
    return [path for path in found if not any(path.is_relative_to(folder.resolve()) for folder in inside)]


def _within(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module of ours is in one of the rooms, or is one of the modules."""
    return any(
        module == f"baton.{name}" or module.startswith(f"baton.{name}.") for name in names if name not in ALLOWED
    ) or (_room(module) in names)


def _file_of(module: str) -> Path | None:
    """The file of a module of ours; None for a package, a name in a module, or a module of others."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    return path.resolve() if module.startswith("baton.") and path.is_file() else None


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    for path in _files(room):
        for name in imports(path):
            if (other := _room(name)) and other != room:
                assert _within(name, ALLOWED[room]), f"{path.relative_to(ROOT)} imports {name}"


def test_there_is_no_import_cycle() -> None:
    order = list(ALLOWED)
    for room, names in ALLOWED.items():
        assert all(order.index(_room(f"baton.{name}") or "") < order.index(room) for name in names), room


def test_every_room_has_its_rules() -> None:
    assert all(_files(room) for room in ALLOWED)
    homes = {path.name for path in (ROOT / "baton").iterdir() if path.is_dir() and any(python_files(path))}
    assert homes == {room.split(".")[0] for room in ALLOWED}


@pytest.mark.parametrize("room", PURE)
def test_a_pure_room_does_no_io_and_imports_nothing_that_does(room: str) -> None:
    waiting, seen = [path for path in _files(room) if path != ROOT / CODEC], set[Path]()
    while waiting:
        path = waiting.pop()
        names = imports(path)
        assert not {name.split(".")[0] for name in names} & IMPURE, path.relative_to(ROOT)
        seen.add(path)
        waiting += {found for name in names if (found := _file_of(name))} - seen


@pytest.mark.parametrize("path", PURE_FILES)
def test_a_pure_file_does_no_io(path: str) -> None:
    assert not {name.split(".")[0] for name in imports(ROOT / path)} & IMPURE


def test_the_folders_at_the_top_are_the_package_they_are_linked_into() -> None:
    for name in AT_THE_TOP:
        assert (ROOT / "baton" / name).readlink() == Path("..") / name


def test_no_module_of_ours_has_a_second_name() -> None:
    """`import router` would work in a checkout, beside `baton.router`, and make every class of it twice."""
    name = rf"(?:{'|'.join(room for room in ALLOWED if '.' not in room)})\b(?:\.\w+)*"
    ways = (rf"\bfrom {name} import ", rf"(?<!baton )\bimport {name}(?: as \w+)?(?:$|[;,\"\\])", rf"-m {name}")
    second_name = re.compile("|".join(ways), re.MULTILINE)
    for path in text_files(ROOT):
        assert second_name.search(path.read_text()) is None, path


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_one_home(library: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in ours()
        if not path.is_relative_to(ROOT / "tests") and library in {name.split(".")[0] for name in imports(path)}
    }
    assert users <= ONLY_IN[library]


def test_importing_the_pure_half_loads_no_heavy_library() -> None:
    code = (
        "import sys, baton, baton.router.core.core, baton.router.core.lifecycle\n"
        "import baton.prefill_worker.role, baton.decode_worker.role\n"
        "heavy = {'torch', 'grpc', 'ray', 'zmq', 'nixl', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
