"""Kernels are packed, checked and installed; with a compiler present they are also compiled and loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from baton.deploy.flashinfer_kernels import main, modules_for, parse
from baton.deploy.kernel_pack import Here, describe, install, oldest_glibc, read_pack, refusal, write_pack
from baton.engine.kernel_compiler import cuda_home
from baton.engine.prebuilt_kernels import MANIFEST, Manifest, read_manifest
from baton.protocol.errors import ConfigError

HERE = Here("0.6.6", "0.1.15.post2", "13.0", "2.36", "x86_64")
LIBRARIES = {"page": b"\x7fELF GLIBC_2.3.4\0GLIBC_2.14\0 code", "norm": b"\x7fELF GLIBC_2.2.5\0"}


def _pack(path: Path) -> Manifest:
    manifest = describe(LIBRARIES, ["9.0a"], HERE)
    write_pack(path, LIBRARIES, manifest)
    return manifest


def test_a_pack_is_read_as_it_was_written_and_is_the_same_file_each_time(tmp_path: Path) -> None:
    manifest = _pack(tmp_path / "one.tar.xz")
    assert read_pack(tmp_path / "one.tar.xz") == (manifest, LIBRARIES)
    _pack(tmp_path / "two.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()


def test_the_oldest_c_library_is_compared_as_numbers() -> None:
    assert oldest_glibc(LIBRARIES.values()) == "2.14"
    assert oldest_glibc([b"GLIBC_2.4\0 GLIBC_2.34\0GLIBCXX_3.4.30\0"]) == "2.34"


def test_libraries_lie_where_flashinfer_looks_for_them_beside_those_of_earlier_packs(tmp_path: Path) -> None:
    older = describe({"rope": b"older", "page": b"older"}, ["8.0"], HERE)
    install(older, {"rope": b"older", "page": b"older"}, tmp_path)
    install(describe(LIBRARIES, ["9.0a"], HERE), LIBRARIES, tmp_path)
    assert (tmp_path / "page/page.so").read_bytes() == LIBRARIES["page"]
    assert (tmp_path / "rope/rope.so").read_bytes() == b"older"
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert {name: module.architectures for name, module in manifest.modules.items()} == {
        "rope": ("8.0",),
        "page": ("9.0a",),
        "norm": ("9.0a",),
    }


def test_kernels_of_another_flashinfer_are_not_taken_for_those_of_a_later_pack(tmp_path: Path) -> None:
    install(describe({"rope": b"older"}, ["9.0a"], replace(HERE, flashinfer="0.6.5")), {"rope": b"older"}, tmp_path)
    install(describe(LIBRARIES, ["9.0a"], HERE), LIBRARIES, tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert set(manifest.modules) == set(LIBRARIES)


def test_a_library_that_is_installed_twice_at_once_is_never_seen_in_part(tmp_path: Path) -> None:
    libraries = {"page": os.urandom(1 << 20)}
    manifest, library = describe(libraries, ["9.0a"], HERE), tmp_path / "page/page.so"
    install(manifest, libraries, tmp_path)
    with ThreadPoolExecutor(3) as pool:
        installing = [pool.submit(install, manifest, libraries, tmp_path) for _ in range(40)]
        while not all(future.done() for future in installing):
            assert library.stat().st_size == 1 << 20
        for future in installing:
            future.result()
    assert [path.name for path in library.parent.iterdir()] == ["page.so"]


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (replace(HERE, machine="aarch64"), "for x86_64, and this is aarch64"),
        (replace(HERE, flashinfer="0.6.7"), "of FlashInfer 0.6.6, and 0.6.7 is installed"),
        (replace(HERE, tvm_ffi="0.1.14"), "pip install 'apache-tvm-ffi==0.1.15.post2'"),
        (replace(HERE, tvm_ffi="0.2.0"), "pip install 'apache-tvm-ffi==0.1.15.post2'"),
        (replace(HERE, cuda="12.8"), "built with CUDA 13.0, and torch is of CUDA 12.8"),
        (replace(HERE, glibc="2.5"), "need glibc 2.14, and this machine has 2.5"),
    ],
)
def test_kernels_that_would_not_load_are_refused_with_the_reason(here: Here, words: str) -> None:
    assert words in str(refusal(describe(LIBRARIES, ["9.0a"], HERE), here))


@pytest.mark.parametrize(
    "here", [HERE, replace(HERE, cuda="13.2"), replace(HERE, cuda=""), replace(HERE, tvm_ffi="0.1.16", glibc="2.39")]
)
def test_newer_versions_accept_older_kernels(here: Here) -> None:
    assert refusal(describe(LIBRARIES, ["9.0a"], HERE), here) is None


def _damaged(path: Path) -> None:
    manifest = describe(LIBRARIES, ["9.0a"], HERE)
    write_pack(path, {**LIBRARIES, "page": b"other"}, manifest)


def _changed_on_its_way(path: Path) -> None:
    _pack(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def _without_a_library(path: Path) -> None:
    write_pack(path, {"norm": LIBRARIES["norm"]}, describe(LIBRARIES, ["9.0a"], HERE))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_text("no archive"), "is not a pack of kernels"),
        (_damaged, "page does not match its manifest"),
        (_without_a_library, "page does not match its manifest"),
        (_changed_on_its_way, "is not a pack of kernels"),
    ],
)
def test_an_incomplete_pack_is_reported_in_one_sentence(
    make: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "pack.tar.xz")
    with pytest.raises(ConfigError, match=words):
        read_pack(tmp_path / "pack.tar.xz")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"modules": 3}', '{"modules": {"page": {}}}', '{"modules": {}, "more": 1}']
)
def test_a_manifest_of_another_kind_is_reported_in_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{MANIFEST} is not a valid manifest of kernels"):
        Manifest.from_json(text)


def test_a_module_name_is_not_a_path() -> None:
    text = describe(LIBRARIES, ["9.0a"], HERE).as_json().replace('"page"', '"../../page"')
    assert list(Manifest.from_json(text).modules) == ["norm"]


def test_each_option_becomes_one_module(tmp_path: Path) -> None:
    both = modules_for(parse(["build", "x", "--head-dim", "64,128", "--group", "1,4", "--dtype", "bfloat16,float16"]))
    assert len(both) == 4 + 2 * 2 * 2
    (tmp_path / "config.json").write_text(
        (Path(__file__).parents[2] / "baton/builtin_model/checkpoint/config.json").read_text()
    )
    small = modules_for(parse(["build", "x", "--model", str(tmp_path)]))
    assert [module.name for module in small] == ["norm", "silu_and_mul"], "torch attends with heads of 32"
    with pytest.raises(ConfigError, match="--only nrom matches no module: there are norm, "):
        modules_for(parse(["build", "x", "--only", "nrom"]))


def test_a_models_kernels_follow_from_the_heads_of_a_rank(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64, **heads}
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps({**config, **sizes}))
    model = ["build", "x", "--model", str(tmp_path), "--tensor-parallel"]
    whole, half, quarter = (modules_for(parse([*model, ranks])) for ranks in ("1", "2", "4"))
    assert whole == half, "four query heads share a KV head"
    assert [module.name.startswith("batch_decode") for module in quarter if module not in whole] == [True]
    with pytest.raises(ConfigError, match="8 attention heads cannot be divided among 3 ranks"):
        modules_for(parse([*model, "3"]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tensor-parallel", "0"], "a number from 1"),
        (["--dtype", "float32"], "it takes bfloat16 and float16"),
        (["--attention", "fa4"], "it takes fa2 and fa3"),
        (["--attention", "fa3", "--arch", "8.0"], "needs --arch 9.0a"),
        (["--arch", "sm_90"], "it takes numbers such as 8.0 or 9.0a"),
        (["--head-dim", "96"], "FlashInfer has kernels for 64, 128, 256"),
        (["--group", "four"], "take whole numbers"),
    ],
)
def test_options_without_kernels_to_build_are_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["build", "x", *options])
    assert words in capsys.readouterr().err


def test_without_flashinfer_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _pack(tmp_path / "pack.tar.xz")
    assert main(["install", str(tmp_path / "pack.tar.xz")]) == 1
    assert (
        capsys.readouterr().err
        == "FlashInfer is not installed in this Python: pip install '.[cuda]' in Baton's checkout.\n"
    )


def _why_not() -> str:
    if importlib.util.find_spec("flashinfer") is None:
        return "FlashInfer is not installed: pip install '.[cuda]'"
    programs = {"ninja": "ninja", "a C++ compiler": "c++", "nvcc": str(cuda_home(os.environ) / "bin/nvcc")}
    return ", ".join(f"no {name} here" for name, program in programs.items() if shutil.which(program) is None)


LOAD = """
import sys
from pathlib import Path
import flashinfer
from baton.engine.attention.kernel_modules import kernel_modules
from baton.engine.kernel_loading import load_kernels
import torch
flashinfer.jit.env.FLASHINFER_AOT_DIR = Path(sys.argv[1])
(silu,) = [module for module in kernel_modules(torch.bfloat16, 128, 4) if module.name == "silu_and_mul"]
load_kernels([silu], tuple(map(int, sys.argv[2].split("."))), print)
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "all is here")
def test_kernels_compiled_here_load_on_a_machine_without_a_compiler(tmp_path: Path) -> None:
    pack, aot = tmp_path / "silu.tar.xz", tmp_path / "aot"
    command = [sys.executable, "-m", "baton.deploy.flashinfer_kernels"]
    # Headers that silu does not include are not downloaded.
    (tmp_path / "work/curand").mkdir(parents=True)
    (tmp_path / "work/curand/curand_kernel.h").touch()
    options = ["--only", "silu", "--work", str(tmp_path / "work")]
    output = subprocess.run([*command, "build", str(pack), *options], check=True, capture_output=True, text=True).stdout
    assert "silu_and_mul: 1 file\n" in output
    assert "1 modules for 9.0a" in output
    subprocess.run([*command, "install", str(pack), "--into", str(aot)], check=True)
    bare = {"PATH": "", "HOME": str(tmp_path), "CUDA_HOME": "/nonexistent", "FLASHINFER_CUDA_ARCH_LIST": "9.0a"}

    def load(folder: Path, capability: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", LOAD, str(folder), capability]
        return subprocess.run(arguments, env=bare, check=False, capture_output=True, text=True)

    assert load(aot, "9.0").returncode == 0
    other = load(aot, "8.0").stderr
    assert "kernels silu_and_mul in" in other
    assert "are for GPUs 9.0a, and this one is 8.0" in other
    assert (
        "silu_and_mul are not installed, and programs to compile them are not found (ninja, nvcc"
        in load(tmp_path, "9.0").stderr
    )
    (aot / "silu_and_mul/silu_and_mul.so").write_bytes(b"half")
    assert "FlashInfer's kernels silu_and_mul cannot be loaded" in load(aot, "9.0").stderr
