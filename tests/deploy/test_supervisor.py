"""The supervisor's attempts, also on a machine short of disk space or processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from baton.deploy.attempt import Attempt
from baton.deploy.look import recovery_file, supervised
from baton.deploy.processes import PYTHON, NotedProcess, python_environment
from baton.deploy.running import claim_note
from baton.deploy.supervisor import Supervisor
from tests.deploy.noted import CLUSTER
from tests.waiting import until


def test_an_attempt_ends_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"import sys; open({str(log)!r}, 'a').write('ray: starting\\nNo port is free.\\n'); sys.exit(1)"
    attempt = Attempt([sys.executable, "-c", script], log, 0.0)
    until(lambda: attempt.outcome(1.0)[0] != "running")
    assert attempt.outcome(1.0) == ("failed", "No port is free.")


def test_the_last_line_of_a_log_is_given_without_its_time_and_level(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"""import sys; from baton.logs import log, set_up; sys.stderr = open({str(log)!r}, "a")
set_up("restart"); log.error("No port is free."); sys.exit(1)"""
    attempt = Attempt([sys.executable, "-c", script], log, 0.0)
    until(lambda: attempt.outcome(1.0)[0] != "running")
    assert attempt.outcome(1.0) == ("failed", "No port is free.")


def test_an_attempt_without_progress_is_ended_and_one_with_progress_is_not(tmp_path: Path) -> None:
    log = tmp_path / "log"
    attempt = Attempt(["sleep", "60"], log, now_s=0.0, stalled_s=100.0)
    try:
        assert attempt.outcome(99.0) == ("running", "")
        log.write_text("decode-0: loading\n")
        assert attempt.outcome(150.0) == ("running", "")
        assert attempt.outcome(249.0) == ("running", "")
        attempt.outcome(251.0)
        until(lambda: attempt.outcome(251.0)[0] == "failed")
        assert attempt.outcome(252.0) == ("failed", "no progress within 100 s")
    finally:
        attempt.end()


def test_an_attempt_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    log = tmp_path / "log"
    log.touch()
    attempt = Attempt(["sh", "-c", f'exec {sys.executable} -c "{script}" > {log}'], log, 0.0, stalled_s=100.0)
    until(lambda: log.stat().st_size > 0)
    assert attempt.outcome(1.0)[0] == "running"
    assert attempt.outcome(102.0)[0] == "running"
    assert attempt.outcome(110.0)[0] == "running"
    attempt.outcome(200.0)
    until(lambda: attempt.outcome(200.0)[0] == "failed")


def test_a_failed_write_or_start_is_retried(
    tmp_path: Path, ended: NotedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_note(replace(CLUSTER, vital=(ended,)), tmp_path)
    recovery_file(tmp_path).with_suffix(".new").mkdir()  # nothing can be written, even by root
    monkeypatch.setattr("baton.deploy.supervisor.PYTHON", ("/no/such/python",))
    watch = Supervisor(tmp_path, CLUSTER.id)
    assert watch.look_and_act()
    assert watch.look_and_act()
    assert supervised(tmp_path) is None
    recovery_file(tmp_path).with_suffix(".new").rmdir()
    assert watch.look_and_act()
    state = supervised(tmp_path)
    assert state is not None
    assert (state.recovery.phase, state.recovery.attempts) == ("waiting", 1)
    assert "no process could be started: No such file" in state.recovery.error


def test_a_note_that_cannot_be_read_for_a_moment_does_not_end_the_supervisor(tmp_path: Path) -> None:
    claim_note(CLUSTER, tmp_path)
    watch = Supervisor(tmp_path, CLUSTER.id)
    assert watch.look_and_act()
    note = tmp_path / "cluster.json"
    note.rename(tmp_path / "aside")
    note.symlink_to("cluster.json")  # an I/O error, even for root
    assert watch.look_and_act()
    note.unlink()
    assert not watch.look_and_act()


def test_the_folder_of_ray_is_locked_so_that_old_files_in_it_stay(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    claim_note(replace(CLUSTER, ray_folder=str(folder)), tmp_path)
    watch = Supervisor(tmp_path, CLUSTER.id)
    assert watch.look_and_act()
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def test_our_processes_do_not_take_modules_from_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "baton.py").write_text("raise SystemExit(7)\n")
    environment = {**python_environment(), "PYTHONSAFEPATH": ""}
    command = [*PYTHON, "baton.deploy.supervisor", str(tmp_path), "no cluster"]
    assert subprocess.run(command, cwd=tmp_path, env=environment, timeout=30).returncode == 0
