"""Ending a noted cluster: which cluster is ended, what is left alone, and what is reported."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from baton.deploy.ending import clear, down, end_killed_demos
from baton.deploy.look import serving_cluster
from baton.deploy.processes import PYTHON, NotedProcess, noted_process, python_environment, this_process
from baton.deploy.running import claim_note, running_cluster, update_note
from baton.protocol.errors import ConfigError, NoWorkers
from tests.deploy.noted import CLUSTER
from tests.live.commands import baton_command


def test_after_a_reboot_every_command_says_so_and_up_continues(tmp_path: Path) -> None:
    old = replace(this_process("raylet"), boot="the one before")
    claim_note(replace(CLUSTER, vital=(old,)), tmp_path)
    with pytest.raises(NoWorkers, match=r"machine was rebooted.*`baton up` starts it again"):
        serving_cluster(tmp_path)
    stages: list[str] = []
    clear(tmp_path, lambda process, stage: stages.append(stage))
    assert stages == [
        "done: The cluster ended when the machine was rebooted. Nothing was running; its note is removed."
    ]
    assert running_cluster(tmp_path) is None


def test_down_reports_what_it_ended_of_a_dead_cluster_within_seconds(tmp_path: Path, ended: NotedProcess) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    claim_note(replace(CLUSTER, ray_folder=str(folder), vital=(ended,)), tmp_path)
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, "BATON_RAY_FOLDER": str(folder)})
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, "BATON_RAY_FOLDER": f"{folder}-other"})
    try:
        began_s = time.monotonic()
        done = down(tmp_path)
        assert time.monotonic() - began_s < 5
        assert noted_process("orphan", orphan.pid) is None
        assert other.poll() is None
    finally:
        for process in (orphan, other):
            process.kill()
            process.wait()
    assert done.sentence == (
        "The cluster has died: its gcs_server ended. Ended 1 process that it left; its note is removed."
    )
    assert done.actors == ()
    assert not folder.exists()
    assert down(tmp_path).sentence == "Nothing was running."


def test_a_live_process_with_the_noted_pid_is_not_ended(tmp_path: Path) -> None:
    foreign = replace(this_process("baton up"), started_ticks=1)
    claim_note(replace(CLUSTER, state="starting", changed_by=foreign, vital=(foreign,)), tmp_path)
    assert down(tmp_path).sentence.startswith("The command that should start the cluster was killed.")


def test_a_cluster_that_lives_is_not_cleared(tmp_path: Path, port: int) -> None:
    here = f"127.0.0.1:{port}"
    lives = replace(CLUSTER, address=here, ray_address=here, vital=(this_process("raylet"),))
    claim_note(lives, tmp_path)
    for cluster, words in (
        (lives, "is already running"),
        (replace(lives, admin_address="127.0.0.1:9"), "router does not answer"),
        (replace(lives, address="127.0.0.1:9"), "gateway does not answer"),
        (replace(lives, state="starting", changed_by=this_process("baton up")), "being started by baton up"),
    ):
        update_note(cluster, tmp_path)
        with pytest.raises(ConfigError, match=words):
            clear(tmp_path, lambda process, stage: None)
        assert running_cluster(tmp_path) == cluster


def test_the_demo_of_a_killed_command_is_ended_and_another_one_is_not(tmp_path: Path, ended: NotedProcess) -> None:
    for name, command in (("demo-1", ended), ("demo-2", this_process("baton demo"))):
        (tmp_path / name).mkdir()
        claim_note(replace(CLUSTER, ends_with=command), tmp_path / name)
    clear(tmp_path, lambda process, stage: None)
    assert not (tmp_path / "demo-1").exists()
    assert running_cluster(tmp_path / "demo-2") is not None


def test_a_cluster_on_a_ray_that_cannot_be_reached_keeps_its_note(tmp_path: Path, silent_port: int) -> None:
    claim_note(replace(CLUSTER, ray_folder="", ray_address=f"127.0.0.1:{silent_port}"), tmp_path)
    with pytest.raises(ConfigError, match="Ray cannot be reached at"):
        clear(tmp_path, lambda process, stage: None)
    with pytest.raises(ConfigError, match="`baton down` tries it again"):
        down(tmp_path)
    noted = running_cluster(tmp_path)
    assert noted is not None
    assert noted.state == "ending"


def test_only_the_cluster_that_was_looked_at_is_ended(tmp_path: Path) -> None:
    claim_note(CLUSTER, tmp_path)
    assert not down(tmp_path, only="b" * 32).noted
    assert running_cluster(tmp_path) == CLUSTER


def test_a_cluster_noted_while_the_one_before_is_ended_stays(tmp_path: Path) -> None:
    second = replace(CLUSTER, id="b" * 32)
    script = (
        "import signal, sys\nfrom pathlib import Path\n"
        "from baton.deploy.running import claim_note, remove_note, running_cluster\nfrom dataclasses import replace\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "def end(*_):\n"
        "    first = running_cluster(folder)\n    remove_note(first.id, folder)\n"
        "    claim_note(replace(first, id='b' * 32, state='up', changed_by=None), folder)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('ready', flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen(
        [*PYTHON[:-1], "-c", script], stdout=subprocess.PIPE, env=python_environment(), text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        claim_note(replace(CLUSTER, state="starting", changed_by=noted_process("baton up", other.pid)), tmp_path)
        assert down(tmp_path).died == "Another command ended the cluster."
    assert running_cluster(tmp_path) == second


def test_a_command_that_ends_what_it_is_itself_changing_does_not_end_itself(tmp_path: Path) -> None:
    claim_note(replace(CLUSTER, state="ending", changed_by=this_process("baton demo")), tmp_path)
    assert down(tmp_path).noted
    assert running_cluster(tmp_path) is None


def test_an_old_folder_of_a_demo_without_a_note_is_removed(tmp_path: Path) -> None:
    for name, age_s in (("demo-old", 3600), ("demo-new", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    end_killed_demos(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo-new"]


def test_up_ends_leftovers_before_it_checks_model_and_memory(tmp_path: Path, ended: NotedProcess) -> None:
    claim_note(replace(CLUSTER, vital=(ended,)), tmp_path)
    environment = {**python_environment(), "BATON_HOME": str(tmp_path)}
    up = baton_command(environment, "up", "--model", "/no/such/model")
    assert up.returncode == 1
    assert "before: done: The cluster has died: its gcs_server ended." in up.stderr
    assert "The folder /no/such/model does not exist" in up.stderr
    assert running_cluster(tmp_path) is None
