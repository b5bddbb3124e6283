"""The reason for a worker's death is taken from its log, in one clause."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from baton.config.ray_names import FIRST_WORDS
from baton.deploy.exit_reason import exit_reason, log_of

FREE = "12 MiB free under the limit of 600 MiB"
LOGGED = "2026-11-27T13:50:26.123Z prefill-0"
BUS = """:job_id:01000000
:actor_name:prefill-0
[host:123 :0:124] Caught signal 7 (Bus error: nonexistent physical address)
==== backtrace (tid: 124) ====
 0 0x000000000003c050 __sigaction()
=================================
Fatal Python error: Bus error

Thread 0x00007f (most recent call first):
  File "x.py", line 5 in run

Extension modules: numpy, torch (total: 2)
"""


@pytest.mark.parametrize(
    ("log", "killed", "reason"),
    [
        (BUS, False, "its process died of a Bus error: /dev/shm may be full"),
        ("Fatal Python error: Segmentation fault\n", False, "its process died of a Segmentation fault"),
        ("*** SIGABRT received at time=1 on cpu 0 ***\n", False, "its process died of a SIGABRT"),
        (
            ":actor_name:a\nOSError: no device\n\n",
            False,
            "its process ended; the last line of its log: OSError: no device",
        ),
        (":actor_name:a\n", False, f"its process was killed without a message (SIGKILL), probably for memory; {FREE}"),
        (
            f"{LOGGED} INFO: 64 MiB to decode-0:1 in 3.0 ms\n{LOGGED} WARNING [request SIGBUS]: *** SIGBUS received\n",
            False,
            f"its process was killed without a message (SIGKILL), probably for memory; {FREE}",
        ),
        (
            f"{LOGGED} ERROR: the page pool does not add up\n{LOGGED} INFO: a later line\n",
            False,
            "its process ended; the last line of its log: the page pool does not add up",
        ),
        (
            f"{LOGGED} ERROR: It failed.\nTraceback (most recent call last):\n  File\nOSError: no device\n",
            False,
            "its process ended; the last line of its log: OSError: no device",
        ),
        (
            '{"level":"ERROR","message":"It failed.","exception":"Traceback\\nOSError: no device"}\n'
            '{"level":"INFO","message":"a later line"}\n',
            False,
            "its process ended; the last line of its log: OSError: no device",
        ),
        ("a warning\n", True, f"its process was killed by the kernel for memory; {FREE}"),
    ],
)
def test_the_reason_is_one_clause(log: str, killed: bool, reason: str) -> None:
    assert exit_reason(log, killed, FREE) == reason


def test_without_a_local_log_the_reason_from_ray_counts() -> None:
    from_ray = "The actor died unexpectedly.\n\tname: prefill-0\nThe actor died because its node has died.\n\n"
    assert exit_reason(None, False, FREE, from_ray) == (
        "The actor died because its node has died. (a log, if it wrote one, is on its node)"
    )
    assert "memory" not in exit_reason(None, True, FREE, from_ray)


def test_the_newest_log_of_a_process_that_ended_is_read(tmp_path: Path) -> None:
    gone = 1 << 22  # larger than any process id
    logs = (
        ("decode-0", "of the process that was started again", os.getpid()),
        ("decode-0", "new", gone),
        ("decode-0", "old", gone + 1),
        ("decode-01", "not mine", gone + 2),
    )
    for age, (name, text, pid) in enumerate(logs):
        path = tmp_path / f"worker-{age}-01000000-{pid}.err"
        first = f'{{"level":"INFO","message":"{FIRST_WORDS.format(name)}"}}' if age % 2 else FIRST_WORDS.format(name)
        path.write_text(f":job_id:1\n{first}\n{text}\n")
        os.utime(path, (1000 - age, 1000 - age))
    assert log_of("decode-0", tmp_path) == "new\n"
    assert log_of("decode-0", tmp_path, since_s=1000.0) is None
    assert log_of("prefill-0", tmp_path) is None
