"""The operators' commands as typed: arguments, prompts, progress, exit codes and JSON documents."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from baton.cli.cluster_report import _cells
from baton.cli.main import app
from baton.protocol.v1 import admin_pb2
from tests.cli.commands import BATON, baton, widen
from tests.client.fake_admin import FakeAdmin, operation, serving

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAdmin]:
    """An admin server that the commands find by themselves."""
    widen(monkeypatch, 140)
    made = FakeAdmin()  # type: ignore[abstract]
    with serving(made) as address:
        monkeypatch.setenv("BATON_ADMIN_ADDRESS", address)
        yield made


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json_output(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baton(command, "--help") == 0
    shown = capsys.readouterr().out
    assert f"baton {command}" in shown
    assert "Example" in shown
    assert "--json" in shown


MISTAKES = {
    ("rebalance",): "both counts",
    ("rebalance", "--prefill", "3"): "both counts",
    ("rebalance", "--auto", "on", "--prefill", "1"): "--auto cannot be combined",
    ("rebalance", "--auto", "off", "--dry-run"): "--auto cannot be combined",
    ("rebalance", "--prefill", "1", "--decode", "2"): "--yes",
    ("rebalance", "--prefill", "1", "--decode", "2", "--json"): "--yes",
    ("scale",): "baton scale --prefill +1",
    ("scale", "--prefill", "3"): "'3'",
    ("scale", "--decode", "-0"): "'-0'",
    ("scale", "--decode", "more"): "'more'",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_reported_in_one_sentence_without_a_prompt(
    admin: FakeAdmin, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert baton(*arguments) == 1
    shown = capsys.readouterr()
    assert MISTAKES[arguments] in shown.err
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert admin.started == []


def test_missing_and_unknown_arguments_exit_with_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("drain") == 2
    assert "WORKER" in capsys.readouterr().err
    assert baton("rebalance", "--auto", "maybe") == 2
    assert "maybe" in capsys.readouterr().err


def test_an_address_where_nothing_answers_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("pools", "--admin", "127.0.0.1:9") == 1
    assert "baton up" in capsys.readouterr().err


def test_a_dry_run_shows_the_steps_of_a_rebalance_and_changes_nothing(
    admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baton("rebalance", "--prefill", "1", "--decode", "2", "--dry-run") == 0
    assert "switch to decode" in capsys.readouterr().out
    assert [request.dry_run for request in admin.started] == [True]
    assert (admin.started[0].rebalance.prefill, admin.started[0].rebalance.decode) == (1, 2)


@pytest.mark.parametrize(("yes", "code", "asked"), [(True, 0, [True, False]), (False, 1, [True])])
def test_a_rebalance_asks_at_a_terminal(
    admin: FakeAdmin,
    yes: bool,
    code: int,
    asked: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda question, err: yes)
    assert baton("rebalance", "--prefill", "1", "--decode", "2") == code
    assert "switch to decode" in capsys.readouterr().out
    assert [request.dry_run for request in admin.started] == asked


def test_the_steps_are_shown_as_they_go(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.states = [
        operation("running", "waiting", "waiting"),
        operation("running", "draining", "waiting"),
        operation("running", "draining", "waiting"),
        operation("running", "done", "verifying"),
        operation("done", "done", "done"),
    ]
    assert baton("rebalance", "--prefill", "1", "--decode", "2", "--yes") == 0
    shown = capsys.readouterr()
    assert [line.split(": ")[-1] for line in shown.err.splitlines()] == ["draining", "done", "verifying", "done"]
    assert "rebalance (operation op): done" in shown.out


def test_a_failed_operation_exits_with_code_one_and_its_reason(
    admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.states = [operation("failed", "failed", message="the worker was lost.")]
    assert baton("drain", "decode-0") == 1
    assert "the worker was lost." in capsys.readouterr().err
    assert baton("drain", "decode-0", "--json") == 1
    assert json.loads(capsys.readouterr().out)["state"] == "failed"


def test_a_refusal_is_one_sentence(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.refusal = ("Conflict", "Operation 17 is moving this worker.")
    assert baton("drain", "decode-0") == 1
    assert capsys.readouterr().err == "error: Operation 17 is moving this worker.\n"


def test_an_operation_may_continue_in_the_background(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.held = True
    assert baton("undrain", "decode-0", "--detach", "--operation-id", "mine") == 0
    assert "op" in capsys.readouterr().out
    assert admin.started[0].operation_id == "mine"
    assert list(admin.started[0].undrain.workers) == ["decode-0"]
    assert admin.cancelled == []


def test_the_target_of_a_migration_is_chosen_by_the_router_or_the_operator(admin: FakeAdmin) -> None:
    assert baton("migrate", "r1") == 0
    assert baton("migrate", "r1", "decode-0") == 0
    asked = [(request.migrate.request_id, request.migrate.worker) for request in admin.started]
    assert asked == [("r1", ""), ("r1", "decode-0")]


def test_pools_show_the_planner_and_auto_is_set(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("pools") == 0
    assert "advice: 1 prefill + 2 decode: decode is full" in capsys.readouterr().out
    assert baton("pools", "--json") == 0
    prefill = json.loads(capsys.readouterr().out)["pools"][0]
    assert (prefill["role"], prefill["serving"], prefill["pages_in_use"], prefill["pages_total"]) == (
        "prefill",
        2,
        50,
        200,
    )
    assert baton("rebalance", "--auto", "on") == 0
    assert "auto on" in capsys.readouterr().out


def test_status_shows_the_use_of_pages(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("status") == 0
    shown = capsys.readouterr().out
    assert "│ ███▒▒▒▒▒▒░░░ │   25 % │" in shown
    assert "decode-0" in shown


def test_operations_are_listed(admin: FakeAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("operations") == 0
    assert "2 of 2" in capsys.readouterr().out
    assert baton("operations", "--json") == 0
    operations = json.loads(capsys.readouterr().out)["operations"]
    assert [operation["state"] for operation in operations] == ["running", "done"]


def _started(*arguments: str, **pipes: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    return subprocess.Popen(
        [*BATON, *arguments],
        env=environment,
        text=True,
        **pipes,  # type: ignore[call-overload]
    )


def test_an_interrupted_operation_is_cancelled(admin: FakeAdmin) -> None:
    admin.held, admin.states = True, [operation("running", "draining")]
    process = _started("drain", "prefill-1", stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert "draining" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    errors = process.stderr.read()
    assert process.wait(timeout=30) == 130
    assert "Cancelled" in errors
    assert "Traceback" not in errors
    assert admin.cancelled == ["op"]


def test_a_watched_status_prints_one_document_per_line_until_interrupted(admin: FakeAdmin) -> None:
    process = _started("status", "--watch", "--json", stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(2):
        assert json.loads(process.stdout.readline())["model"] == "fake"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0


def test_a_watched_status_is_a_screen_at_a_terminal(admin: FakeAdmin) -> None:
    ours, theirs = pty.openpty()
    process = _started("status", "--watch", stdout=theirs)
    os.close(theirs)
    shown = b""
    while b"decode-0" not in shown:
        shown += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    os.close(ours)


def _completions(line: str) -> list[str]:
    """The completions that bash offers for this line."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_BATON_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    command = [sys.executable, "-c", "from baton.cli.main import app; app(prog_name='baton')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


def test_names_are_completed_from_the_running_cluster(admin: FakeAdmin) -> None:
    assert _completions("baton drain ") == ["prefill-0", "prefill-1", "decode-0"]
    assert _completions("baton drain prefill-0 pre") == ["prefill-1"]
    assert _completions("baton policy r") == ["round_robin"]
    assert _completions("baton cancel ") == ["op"]
    assert _completions("baton drain --admin 127.0.0.1:9 ") == []


@pytest.mark.parametrize("clean", [True, False])
def test_leaks_are_reported_with_exit_code_one(
    admin: FakeAdmin, clean: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.check.clean = clean
    if not clean:
        admin.check.workers.add(name="decode-0", pages_in_use=5, pages_leaked=5, unknown=["ghost"], reported=True)
        admin.check.lost_handoffs.append("ghost/1")
    assert baton("doctor", "leaks") == (0 if clean else 1)
    shown = capsys.readouterr().out
    assert ("No leaks." in shown) is clean
    assert ("decode-0 reports 'ghost'" in shown) is not clean
    assert ("'ghost/1'" in shown) is not clean
    assert baton("doctor", "leaks", "--json") == (0 if clean else 1)
    assert json.loads(capsys.readouterr().out)["clean"] is clean


def test_the_status_shows_how_many_waiting_sequences_are_swapped_out() -> None:
    assert _cells(admin_pb2.WorkerStatus(waiting=3, swapped=2))[2] == "3 (2 swapped)"
    assert _cells(admin_pb2.WorkerStatus(waiting=3))[2] == "3"


def test_links_are_shown_with_their_rates_and_a_warning_exits_with_code_one(
    admin: FakeAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baton("doctor", "links") == 0
    assert "No link is measured yet" in capsys.readouterr().out
    admin.links.append(admin_pb2.Link(source="prefill-0", target="decode-0", num_bytes=64 << 20, seconds=0.02))
    assert baton("doctor", "links") == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("prefill-0", "decode-0", "3.36", "other", "20.0 ms"))
    admin.links[0].warning = "Pages are slow."
    assert baton("doctor", "links") == 1
    assert "Pages are slow." in capsys.readouterr().out
    assert baton("doctor", "links", "--json") == 1
    assert json.loads(capsys.readouterr().out)["links"][0]["warning"] == "Pages are slow."
