"""The note of a cluster: which cluster it describes, whether its processes live, and how commands treat a dead one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from baton.deploy.condition import Condition, Facts, condition
from baton.deploy.look import Supervised, client_address, history, look, reached, serving_cluster, write_supervised
from baton.deploy.processes import NotedProcess, noted_process, this_process
from baton.deploy.recovery import Recovery
from baton.deploy.running import RunningCluster, change_note, claim_note, remove_note, running_cluster, update_note
from baton.protocol.errors import ConfigError, NoWorkers
from tests.deploy.noted import CLUSTER


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


def test_the_page_has_an_address_if_operators_have_http() -> None:
    assert replace(CLUSTER, admin_http_address="").page_url == ""
    here = replace(CLUSTER, admin_http_address="127.0.0.1:8001")
    assert here.page_url == "http://127.0.0.1:8001/"
    encrypted = replace(here, resolved={"config": {"access": {"tls_certificate": "server.crt"}}})
    assert encrypted.page_url == "https://127.0.0.1:8001/"


def test_a_removed_note_is_not_written_again_by_a_late_command(tmp_path: Path) -> None:
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


def test_a_pid_reused_by_another_process_does_not_count() -> None:
    here = this_process("here")
    assert here.lives
    assert not replace(here, started_ticks=here.started_ticks - 1).lives
    assert not replace(here, boot="another one").lives
    other_boot = replace(here, boot="another one")
    other_boot.end(timeout_s=0.1)  # would end this test run
    assert here.lives


def test_a_zombie_process_is_dead() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        noted = noted_process("sleep", process.pid)
        assert noted is not None and noted.lives
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not noted.lives


def test_the_observed_state_of_a_cluster_becomes_a_sentence() -> None:
    def kind(cluster: RunningCluster = CLUSTER, **seen: object) -> str:
        return condition(cluster, Facts(**seen)).kind  # type: ignore[arg-type]

    starting = replace(CLUSTER, state="starting", changed_by=this_process("baton up"))
    assert condition(CLUSTER, Facts()) == Condition("serving")
    assert kind(starting, changer_lives=True) == "starting"
    assert kind(replace(starting, state="ending"), changer_lives=True) == "ending"
    assert kind(starting) == "dead"
    assert kind(same_boot=False, ray="refuses") == "dead"
    assert kind(dead=("raylet",)) == "dead"
    assert kind(ray="refuses") == "dead"
    assert kind(ray="silent") == "unreachable"
    assert kind(command_lives=False) == "dead"
    assert kind(router="refuses") == "no router"
    assert kind(any_gateway="refuses") == "no gateway"
    assert kind(dead=("raylet",), recovery="raylet died 2 s ago", supervisor_lives=True) == "recovering"
    assert kind(starting, recovery="7 attempts failed") == "dead"
    assert kind(recovery="raylet died, and the supervisor ended") == "serving"
    assert condition(CLUSTER, Facts(dead=("raylet",), recovery="7 attempts failed")).why == (
        "The cluster has died: 7 attempts failed."
    )
    assert kind(starting, changer_lives=True, recovery="raylet died, and the supervisor ended") == "starting"
    assert "gcs_server and raylet" in condition(CLUSTER, Facts(dead=("gcs_server", "raylet"))).why


def test_a_cluster_of_which_a_vital_process_ended_is_dead(tmp_path: Path, ended: NotedProcess, port: int) -> None:
    here = f"127.0.0.1:{port}"
    lives = replace(CLUSTER, address=here, ray_address=here, vital=(this_process("raylet"),))
    assert look(lives, tmp_path) == Condition("serving")
    assert look(replace(lives, vital=(ended,)), tmp_path).kind == "dead"
    assert look(replace(lives, ray_address="127.0.0.1:9"), tmp_path).kind == "dead"
    assert look(replace(lives, admin_address="127.0.0.1:9"), tmp_path).kind == "no router"
    assert look(replace(lives, address="127.0.0.1:9"), tmp_path).kind == "no gateway"
    one_of_two = replace(lives, gateway_addresses=("127.0.0.1:9", here))
    assert look(one_of_two, tmp_path).kind == "serving"
    assert client_address(one_of_two) == here
    claim_note(replace(lives, address="127.0.0.1:9"), tmp_path)
    assert serving_cluster(tmp_path) is not None  # For operators
    with pytest.raises(NoWorkers, match="gateway does not answer"):
        serving_cluster(tmp_path, clients=True)
    assert look(replace(lives, gateway_addresses=("127.0.0.1:9",)), tmp_path).kind == "no gateway"


def test_the_commands_report_what_the_supervisor_is_doing(tmp_path: Path) -> None:
    claim_note(replace(CLUSTER, vital=(this_process("raylet"),)), tmp_path)
    now_s = time.monotonic()
    recovery = Recovery("starting", now_s, 1, ("raylet",), now_s - 12)
    write_supervised(Supervised(CLUSTER.id, this_process("supervisor"), recovery), tmp_path)
    with pytest.raises(NoWorkers, match="raylet died 12 s ago; the cluster is being restarted"):
        serving_cluster(tmp_path)
    assert history(tmp_path).startswith("raylet died 12 s ago")
    write_supervised(Supervised("of another cluster", this_process("supervisor"), recovery), tmp_path)
    assert history(tmp_path) == ""


def test_a_dead_supervisor_does_not_make_a_serving_cluster_dead(tmp_path: Path, ended: NotedProcess, port: int) -> None:
    here = f"127.0.0.1:{port}"
    lives = replace(CLUSTER, address=here, ray_address=here, vital=(this_process("raylet"),))
    claim_note(lives, tmp_path)
    now_s = time.monotonic()
    write_supervised(Supervised(CLUSTER.id, ended, Recovery("starting", now_s, 1, ("raylet",), now_s)), tmp_path)
    assert look(lives, tmp_path) == Condition("serving")
    assert history(tmp_path) == ""
    assert (
        "the supervisor that was restarting the cluster has ended" in look(replace(lives, vital=(ended,)), tmp_path).why
    )


def test_only_a_refused_connection_means_that_nothing_listens(silent_port: int) -> None:
    assert reached("127.0.0.1:9") == "refuses"
    assert reached(f"127.0.0.1:{silent_port}") == "silent"


def test_a_change_is_made_to_the_note_as_it_is_now(tmp_path: Path) -> None:
    claim_note(CLUSTER, tmp_path)
    update_note(replace(CLUSTER, workers=("decode-0", "decode-1")), tmp_path)
    change_note(CLUSTER.id, lambda noted: replace(noted, workers=(*noted.workers, "prefill-0")), tmp_path)
    noted = running_cluster(tmp_path)
    assert noted is not None
    assert noted.workers == ("decode-0", "decode-1", "prefill-0")


def test_an_unreadable_note_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").symlink_to("cluster.json")
    with pytest.raises(OSError, match="symbolic links"):
        running_cluster(tmp_path)
    (tmp_path / "file").touch()
    assert running_cluster(tmp_path / "file") is None
