"""Runs one part in its own process, so that a crash or a hang does not affect other parts."""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.figures import EXPECTED
from benchmarks.gpu.part import Options, Part
from benchmarks.gpu.parts import PARTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[part.name for part in PARTS])
    parser.add_argument("--device", required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--kernels", required=True)
    parser.add_argument("--points", type=lambda text: tuple(filter(None, text.split(","))), default=())
    args = vars(parser.parse_args())
    name = args.pop("name")
    # Libraries and worker processes print to the log, which is this process's standard error; only progress lines
    # reach the screen.
    screen = os.fdopen(os.dup(1), "w", errors="replace")
    os.dup2(2, 1)
    part = Part(name, Options(**args), screen)
    part.save()
    chosen = next(one for one in PARTS if one.name == name)
    try:
        import_module(chosen.module).run(part)
    except Exception as error:  # noqa: BLE001 - reported in the table
        missing = [figure for figure in EXPECTED[name](part.sizes) if figure not in part.result.figures]
        part.fail(part.result.doing, missing, error)
    part.result.doing = ""
    part.save()


if __name__ == "__main__":
    main()
