"""The note of a cluster: whose it is, whether what it names lives, and what the commands make of a dead one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import ConfigError, NoWorkers
from deploy.condition import Condition, Facts, condition
from deploy.ending import clear, down
from deploy.look import Supervised, history, look, serving_cluster, write_supervised
from deploy.processes import NotedProcess, noted_process, this_process
from deploy.recovery import Recovery
from deploy.running import RunningCluster, claim_note, remove_note, running_cluster, update_note

CLUSTER = RunningCluster("127.0.0.1:9", ("decode-0",), "127.0.0.1:9", "/tmp/baton-ray-nowhere", id="a" * 32)


@pytest.fixture
def ended() -> NotedProcess:
    """A process that lived a moment ago."""
    with subprocess.Popen(["sleep", "60"]) as process:
        noted = noted_process("gcs_server", process.pid)
        process.kill()
    assert noted is not None
    return noted


@pytest.fixture
def port() -> Iterator[int]:
    """A port at which something accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_second_cluster_does_not_overwrite_the_note_of_the_first(tmp_path: Path) -> None:
    claim_note(CLUSTER, tmp_path)
    with pytest.raises(ConfigError, match="baton down"):
        claim_note(replace(CLUSTER, id="b" * 32), tmp_path)
    with pytest.raises(ConfigError, match="ended by another command"):
        update_note(replace(CLUSTER, id="b" * 32), tmp_path)
    remove_note("b" * 32, tmp_path)
    assert running_cluster(tmp_path) == CLUSTER
    remove_note(CLUSTER.id, tmp_path)
    assert running_cluster(tmp_path) is None


def test_a_note_that_was_removed_is_not_written_by_a_command_that_comes_late(tmp_path: Path) -> None:
    claim_note(CLUSTER, tmp_path)
    remove_note(CLUSTER.id, tmp_path)
    with pytest.raises(ConfigError, match="ended"):
        update_note(CLUSTER, tmp_path)
    assert running_cluster(tmp_path) is None


def test_a_note_is_changed_by_one_command_at_a_time(tmp_path: Path, ended: NotedProcess) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        changing = replace(CLUSTER, state="ending", changed_by=noted_process("baton down", other.pid))
        claim_note(changing, tmp_path)
        with pytest.raises(ConfigError, match=f"baton down \\(process {other.pid}\\)"):
            update_note(CLUSTER, tmp_path)
        other.kill()
    update_note(replace(CLUSTER, changed_by=this_process("here")), tmp_path)
    update_note(CLUSTER, tmp_path)
    assert running_cluster(tmp_path) == CLUSTER


def test_a_pid_that_another_process_has_by_now_is_not_believed() -> None:
    here = this_process("here")
    assert here.lives
    assert not replace(here, started_ticks=here.started_ticks - 1).lives
    assert not replace(here, boot="another one").lives
    stranger = replace(here, boot="another one")
    stranger.end(timeout_s=0.1)  # would end this test run
    assert here.lives


def test_a_process_that_only_waits_for_its_parent_is_dead() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        noted = noted_process("sleep", process.pid)
        assert noted is not None and noted.lives
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not noted.lives


def test_what_is_seen_of_a_cluster_becomes_a_sentence() -> None:
    def kind(cluster: RunningCluster = CLUSTER, **seen: object) -> str:
        return condition(cluster, Facts(**seen)).kind  # type: ignore[arg-type]

    starting = replace(CLUSTER, state="starting", changed_by=this_process("baton up"))
    assert condition(CLUSTER, Facts()) == Condition("serving")
    assert kind(starting, changer_lives=True) == "starting"
    assert kind(replace(starting, state="ending"), changer_lives=True) == "ending"
    assert kind(starting) == "dead"
    assert kind(same_boot=False, ray_answers=False) == "dead"
    assert kind(dead=("raylet",)) == "dead"
    assert kind(ray_answers=False) == "dead"
    assert kind(command_lives=False) == "dead"
    assert kind(router_answers=False) == "no router"
    assert kind(dead=("raylet",), recovery="raylet died 2 s ago", supervisor_lives=True) == "recovering"
    assert kind(starting, recovery="7 attempts failed") == "dead"
    assert "gcs_server and raylet" in condition(CLUSTER, Facts(dead=("gcs_server", "raylet"))).why


def test_a_cluster_of_which_a_vital_process_ended_is_dead(tmp_path: Path, ended: NotedProcess, port: int) -> None:
    here = f"127.0.0.1:{port}"
    lives = replace(CLUSTER, address=here, ray_address=here, vital=(this_process("raylet"),))
    assert look(lives, tmp_path) == Condition("serving")
    assert look(replace(lives, vital=(ended,)), tmp_path).kind == "dead"
    assert look(replace(lives, ray_address="127.0.0.1:9"), tmp_path).kind == "dead"
    assert look(replace(lives, address="127.0.0.1:9"), tmp_path).kind == "no router"


def test_after_a_reboot_every_command_says_so_and_up_goes_on(tmp_path: Path) -> None:
    old = replace(this_process("raylet"), boot="the one before")
    claim_note(replace(CLUSTER, vital=(old,)), tmp_path)
    with pytest.raises(NoWorkers, match=r"machine was started again.*`baton up` starts it again"):
        serving_cluster(tmp_path)
    told: list[str] = []
    clear(tmp_path, lambda process, stage: told.append(stage))
    assert told == [
        "done: The cluster ended when the machine was started again. Nothing was running; its note is removed."
    ]
    assert running_cluster(tmp_path) is None


def test_down_says_what_it_ended_of_a_dead_cluster_and_is_quick(tmp_path: Path, ended: NotedProcess) -> None:
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
    assert down(tmp_path).sentence.startswith("The command that was to start the cluster was killed.")


def test_a_cluster_that_lives_is_not_cleared(tmp_path: Path, port: int) -> None:
    here = f"127.0.0.1:{port}"
    lives = replace(CLUSTER, address=here, ray_address=here, vital=(this_process("raylet"),))
    claim_note(lives, tmp_path)
    for cluster, words in (
        (lives, "is up already"),
        (replace(lives, address="127.0.0.1:9"), "router does not answer"),
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


def test_the_commands_say_what_the_supervisor_is_at(tmp_path: Path) -> None:
    claim_note(replace(CLUSTER, vital=(this_process("raylet"),)), tmp_path)
    now_s = time.monotonic()
    recovery = Recovery("starting", now_s, 1, ("raylet",), now_s - 12)
    write_supervised(Supervised(CLUSTER.id, this_process("supervisor"), recovery), tmp_path)
    with pytest.raises(NoWorkers, match="raylet died 12 s ago; the cluster is being started again"):
        serving_cluster(tmp_path)
    assert history(tmp_path).startswith("raylet died 12 s ago")
    write_supervised(Supervised("of another cluster", this_process("supervisor"), recovery), tmp_path)
    assert history(tmp_path) == ""
