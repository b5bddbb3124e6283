"""FlashInfer's kernels for hosts without a compiler: compiled on another machine, which needs no GPU.

  build    compiles the kernels that Baton uses and packs them, with this machine's nvcc or pip's; needs FlashInfer
  install  unpacks the kernels into the FlashInfer of this Python, which then does not compile them

examples:
  python -m baton.deploy.flashinfer_kernels build kernels.tar.xz  # Llama and Qwen3 of most sizes, bfloat16, Hopper
  python -m baton.deploy.flashinfer_kernels build a100.tar.xz --arch 8.0 --dtype float16 --model ~/models/qwen3-8b
  python -m baton.deploy.flashinfer_kernels install kernels.tar.xz
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from baton.deploy import kernel_build
from baton.deploy.kernel_pack import Here, describe, install, read_pack, refusal, write_pack
from baton.engine.attention.flashinfer import HEAD_DIMS, TENSOR_CORE_GROUP
from baton.engine.attention.kernel_modules import KernelModule, kernel_modules
from baton.engine.checkpoint import read_config
from baton.engine.model_config import check_ranks
from baton.engine.storage import DTYPES
from baton.protocol.errors import BatonError, ConfigError

_ARCHITECTURE = re.compile(r"\d+\.\d+[af]?")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with lists split; exits with code 2 and a message for values that do not exist."""
    parser = argparse.ArgumentParser(
        prog="python -m baton.deploy.flashinfer_kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="compile kernels and pack them", description="Compile and pack kernels.")
    build.add_argument("pack", type=Path, metavar="OUT.tar.xz")
    build.add_argument(
        "--arch", default="9.0a", metavar="ARCH,…", help="GPU architectures, e.g. 8.0, 8.9, 9.0a, 10.0a (9.0a: Hopper)"
    )
    build.add_argument(
        "--dtype", default="bfloat16", metavar="DTYPE,…", help="number formats: bfloat16, float16 (bfloat16)"
    )
    build.add_argument("--head-dim", default="128", metavar="N,…", help="head dimensions: 64, 128, 256 (128)")
    build.add_argument(
        "--group", default=str(TENSOR_CORE_GROUP), metavar="N,…", help="query heads per KV head (4, and more)"
    )
    build.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="folder with a model's config.json; replaces --head-dim and --group by the model's",
    )
    build.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="ranks of a worker: with more than the model's KV heads, fewer query heads share a KV head (1)",
    )
    build.add_argument(
        "--attention", default="fa2", metavar="KERNELS,…", help="prefill kernels: fa2, fa3 (10 minutes more)"
    )
    build.add_argument("--only", metavar="MODULE,…", help="compile only modules whose names begin so")
    build.add_argument(
        "--jobs", type=int, default=os.cpu_count(), metavar="N", help="files compiled at once; fa3 takes 3.5 GB each"
    )
    build.add_argument("--cuda", type=Path, metavar="FOLDER", help="CUDA toolkit (CUDA_HOME, nvcc's, or one from pip)")
    build.add_argument(
        "--work",
        type=Path,
        default=Path.home() / ".cache/baton/flashinfer_kernels",
        metavar="FOLDER",
        help="folder that keeps compiled files (~/.cache/baton/flashinfer_kernels)",
    )
    put = commands.add_parser("install", help="unpack kernels into FlashInfer", description="Unpack kernels.")
    put.add_argument("pack", type=Path, metavar="FILE")
    put.add_argument("--into", type=Path, metavar="FOLDER", help="folder to install into (FlashInfer's own)")
    args = parser.parse_args(arguments)
    if args.command == "build":
        _check(build, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Split lists, and report unknown values as errors of the command line."""
    args.arch = args.arch.split(",")
    args.dtype, args.attention = args.dtype.split(","), args.attention.split(",")
    for name, known in (("dtype", ("bfloat16", "float16")), ("attention", ("fa2", "fa3"))):
        if unknown := sorted(set(getattr(args, name)) - set(known)):
            parser.error(f"--{name} does not take {', '.join(unknown)}; it takes {' and '.join(known)}")
    if wrong := [name for name in args.arch if not _ARCHITECTURE.fullmatch(name)]:
        parser.error(f"--arch does not take {', '.join(wrong)}; it takes numbers such as 8.0 or 9.0a")
    if "fa3" in args.attention and "9.0a" not in args.arch:
        parser.error("--attention fa3 is for Hopper: it needs --arch 9.0a")
    try:
        args.head_dim, args.group = ([int(word) for word in text.split(",")] for text in (args.head_dim, args.group))
    except ValueError:
        parser.error("--head-dim and --group take whole numbers")
    if args.tensor_parallel < 1:
        parser.error("--tensor-parallel takes a number from 1")
    if wrong_dims := sorted(set(args.head_dim) - set(HEAD_DIMS)):
        parser.error(
            f"--head-dim does not take {wrong_dims[0]}; FlashInfer has kernels for {', '.join(map(str, HEAD_DIMS))}"
        )


def modules_for(args: argparse.Namespace) -> list[KernelModule]:
    """The modules that the options ask for, each once.

    Raises `ConfigError` when `--only` matches none, or when the model does not fit `--tensor-parallel`.
    """
    dims, groups = args.head_dim, args.group
    if args.model:
        config = read_config(args.model.expanduser())
        check_ranks(config, args.tensor_parallel)
        rank = config.slice(args.tensor_parallel, 0)
        dims, groups = [rank.head_dim], [rank.num_heads // rank.num_kv_heads]
    found = [
        module
        for dtype in args.dtype
        for head_dim in dims
        for group in groups
        for module in kernel_modules(DTYPES[dtype], head_dim, group, args.attention)
    ]
    wanted = args.only.split(",") if args.only else [""]
    chosen = list(dict.fromkeys(module for module in found if module.name.startswith(tuple(wanted))))
    if not chosen:
        names = ", ".join(dict.fromkeys(module.name for module in found))
        raise ConfigError(f"--only {args.only} matches no module: there are {names}.")
    return chosen


def build(args: argparse.Namespace) -> None:
    """Compile the modules that the options ask for, and pack them with a manifest."""
    here, modules = this_machine(), modules_for(args)
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    kernel_build.use_toolkit(work, args.cuda, say)
    libraries = kernel_build.compile_modules(modules, args.arch, args.jobs, work, say)
    built_with = Here(here.flashinfer, here.tvm_ffi, kernel_build.cuda_version(), here.glibc, here.machine)
    manifest = describe(libraries, args.arch, built_with)
    write_pack(args.pack, libraries, manifest)
    say(
        f"{args.pack}: {len(libraries)} modules for {', '.join(args.arch)}, {args.pack.stat().st_size / 1e6:.1f} MB; "
        f"FlashInfer {manifest.flashinfer}, CUDA {manifest.cuda}, glibc {manifest.glibc} or newer"
    )


def put(args: argparse.Namespace) -> None:
    """Install a pack; raises `ConfigError` when its kernels would not load here."""
    manifest, libraries = read_pack(args.pack)
    if reason := refusal(manifest, this_machine()):
        raise ConfigError(f"The kernels in {args.pack} cannot be installed: {reason}.")
    folder = args.into or flashinfer_folder() / "data/aot"
    install(manifest, libraries, folder)
    say(f"{len(libraries)} modules installed in {folder}: {', '.join(libraries)}")


def this_machine() -> Here:
    """The versions that kernels have to match here; raises `ConfigError` without FlashInfer."""
    import torch

    flashinfer_folder()
    glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "glibc 0").split()[-1]
    flashinfer, tvm_ffi = (importlib.metadata.version(name) for name in ("flashinfer-python", "apache-tvm-ffi"))
    return Here(flashinfer, tvm_ffi, torch.version.cuda or "", glibc, platform.machine())


def flashinfer_folder() -> Path:
    """The package's folder, found without importing it; raises `ConfigError` where it is not installed."""
    spec = importlib.util.find_spec("flashinfer")
    if spec is None or spec.origin is None:
        raise ConfigError("FlashInfer is not installed in this Python: pip install '.[cuda]' in Baton's checkout.")
    return Path(spec.origin).parent


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    args = parse(arguments)
    try:
        (build if args.command == "build" else put)(args)
    except BatonError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
