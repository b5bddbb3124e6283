"""Failures of the machine, the terminal or the input are one sentence, never a traceback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from baton.cli.main import app, run
from tests.client.fake_admin import FakeAdmin
from tests.client.fake_admin import serving as serving_admin
from tests.client.fake_inference import FakeInference, dead_port, serving, tokens

ROOT = Path(__file__).resolve().parents[2]
BATON = [sys.executable, "-m", "baton"]
SERVER = """
from tests.client.fake_admin import FakeAdmin, serving
import threading
with serving(FakeAdmin()) as address:
    print(address, flush=True)
    threading.Event().wait()
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home without a cluster, and an admin server that the commands find."""
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "BATON_ADDRESS")}
    with serving_admin(FakeAdmin()) as address:  # type: ignore[abstract]
        yield {
            **kept,
            "PYTHONPATH": str(ROOT),
            "BATON_HOME": str(tmp_path / "home"),
            "BATON_ADMIN_ADDRESS": address,
        }


def _baton(
    environment: dict[str, str], *arguments: str, given: bytes = b"", command: list[str] = BATON
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*command, *arguments], env=environment, input=given, capture_output=True, timeout=60)
    message = done.stderr.decode(errors="replace")
    assert "Traceback" not in message
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(errors="replace"), message)


def _sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert ".." not in done.stderr
    return done.stderr


@pytest.mark.parametrize("module", ["baton", "baton.cli.main"])
def test_the_command_is_a_module_too(environment: dict[str, str], module: str) -> None:
    done = _baton(environment, "pools", command=[sys.executable, "-m", module])
    assert done.returncode == 0, done.stderr
    assert "prefill" in done.stdout


def test_an_ascii_terminal_shows_what_it_can(environment: dict[str, str]) -> None:
    done = _baton({**environment, "PYTHONIOENCODING": "ascii"}, "status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "prefill-0" in done.stdout
    assert "25 %" in done.stdout
    assert "?" not in done.stdout


def test_what_an_ascii_terminal_cannot_show_is_replaced(environment: dict[str, str]) -> None:
    with serving(FakeInference([tokens(5, 6)])) as (address, _):
        ascii_only = {**environment, "PYTHONIOENCODING": "ascii", "BATON_ADDRESS": address}
        done = _baton(ascii_only, "generate", "Grüße")
    assert done.returncode == 0, done.stderr
    assert "5 6" in done.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_input_that_is_not_utf8_is_reported_in_one_sentence(environment: dict[str, str], encoding: str) -> None:
    done = _baton({**environment, "PYTHONIOENCODING": encoding}, "generate", "-", given=b"h\xff\xfe")
    assert "not UTF-8: byte 1 is 0xff" in _sentence(done)


def test_the_input_is_utf8_in_every_locale(environment: dict[str, str]) -> None:
    fake = FakeInference([tokens(5)])
    with serving(fake) as (address, _):
        done = _baton(
            {**environment, "PYTHONIOENCODING": "latin-1", "BATON_ADDRESS": address},
            "generate",
            "-",
            given="Grüße".encode(),
        )
    assert done.returncode == 0, done.stderr
    assert fake.asked[0].text == "Grüße"


def test_an_argument_that_is_not_utf8_is_reported_in_one_sentence(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*map(os.fsencode, BATON), b"generate", b"h\xff"], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert b"not UTF-8: byte 1 is 0xff" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [("status",), ("status", "--json"), ("operations",), ("token", "new", "--tenant", "a")]
)
def test_a_closed_pipe_ends_the_command_quietly(environment: dict[str, str], command: tuple[str, ...]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([*BATON, *command], env=environment, stdout=theirs, stderr=subprocess.PIPE, timeout=60)
    os.close(theirs)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
    assert b"rror" not in done.stderr
    assert done.returncode in (1, 128 + signal.SIGPIPE)


def _unwritable(tmp_path: Path) -> Path:
    """A home in which no file can be created, even by root."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "home"


def test_an_unwritable_home_is_reported_before_anything_starts(environment: dict[str, str], tmp_path: Path) -> None:
    started = time.monotonic()
    done = _baton({**environment, "BATON_HOME": str(_unwritable(tmp_path))}, "up", "--port", "0", "--admin-port", "0")
    assert "BATON_HOME" in done.stderr
    assert "not a directory" in done.stderr
    assert done.returncode == 1
    assert time.monotonic() - started < 30  # importing and reading the model, no Ray
    assert "starting" not in done.stderr


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device", "/x/y"), UnicodeEncodeError("ascii", "ü", 0, 1, "no")]
)
def test_any_other_operating_system_error_is_reported_in_one_sentence(
    failure: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise failure

    assert run(command) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_stopped_router_is_reported_in_seconds_with_its_process(environment: dict[str, str]) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        os.kill(server.pid, signal.SIGSTOP)
        while psutil.Process(server.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        started = time.monotonic()
        message = _sentence(_baton(environment, "status", "--admin", address))
        assert time.monotonic() - started < 10  # four seconds of waiting, and the imports on a slow machine
        assert f"The server at {address} (pid {server.pid}) accepts connections and does not answer" in message
        assert f"kill -CONT {server.pid}" in message
    finally:
        server.kill()
        server.wait()


def test_the_answer_names_the_request_for_explain(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeInference([tokens(5)])
    with serving(fake) as (address, _):
        assert run(lambda: app(["generate", "Hello", "--address", address])) == 0
    assert fake.asked[0].request_id in re.split(r"[\s;]", capsys.readouterr().err)


def test_all_commands_look_for_an_address_in_the_same_order(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag, then the environment, then the note."""
    from baton.deploy.running import RunningCluster, claim_note

    monkeypatch.setenv("BATON_HOME", str(tmp_path))
    by_flag, by_environment, noted = dead_port(), dead_port(), dead_port()
    claim_note(RunningCluster(noted, (), "", "", admin_address=noted))
    for command, flag, variable in (
        (["generate", "Hello"], "--address", "BATON_ADDRESS"),
        (["status"], "--admin", "BATON_ADMIN_ADDRESS"),
    ):
        monkeypatch.delenv(variable, raising=False)
        assert run(lambda command=command: app(command)) == 1  # type: ignore[misc]
        assert noted in capsys.readouterr().err
        monkeypatch.setenv(variable, by_environment)
        assert run(lambda command=command: app(command)) == 1  # type: ignore[misc]
        assert by_environment in capsys.readouterr().err
        assert run(lambda command=command, flag=flag: app([*command, flag, by_flag])) == 1  # type: ignore[misc]
        assert by_flag in capsys.readouterr().err
