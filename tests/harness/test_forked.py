"""Forked processes: from a process with torch and without anything that does not outlive a fork; else like others."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from baton.harness.forked import forked

NOT_TO_BE_FORKED = ("nixl", "grpc", "ray", "triton")


def _report(pipe: Connection) -> None:
    """What a process finds that did nothing yet."""
    import torch

    parent = os.getppid()
    pipe.send(
        {
            "parent": parent,
            "threads of the parent": len(list(Path(f"/proc/{parent}/task").iterdir())),
            "modules": [name for name in ("torch", "baton.worker.build", *NOT_TO_BE_FORKED) if name in sys.modules],
            "CUDA": torch.cuda.is_initialized(),
            "variable": os.environ.get("BATON_TEST_FORKED"),
        }
    )
    signal.pause()


def _started() -> tuple[Any, dict[str, Any]]:
    ours, theirs = mp.Pipe(duplex=False)
    process = forked(_report, theirs)
    process.start()
    theirs.close()
    return process, ours.recv()


def test_processes_come_from_one_that_has_imported_torch_and_opened_nothing() -> None:
    (first, one), (second, other) = _started(), _started()
    try:
        assert one["parent"] == other["parent"] != os.getpid()
        assert one["threads of the parent"] == 1
        assert one["modules"] == ["torch", "baton.worker.build"]
        assert not one["CUDA"]
    finally:
        for process in (first, second):
            process.kill()
            process.join()
    assert [first.exitcode, second.exitcode] == [-signal.SIGKILL] * 2


def test_a_process_has_the_environment_of_the_moment_it_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("one", "two"):
        monkeypatch.setenv("BATON_TEST_FORKED", value)
        process, found = _started()
        process.kill()
        process.join()
        assert found["variable"] == value
