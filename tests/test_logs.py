"""The log of a process: one format, one handler, and no line that an id from outside can forge."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from baton.config.ray_names import FIRST_WORDS
from baton.logs import LineFormatter, log, parse_line

PROCESS = """
import logging, sys, threading
from baton.logs import log, set_up
set_up("decode-0", sys.argv[1], "This is worker decode-0.")
"""


def _line(message: str, **extra: Any) -> str:
    record = log.makeRecord("baton", logging.WARNING, "", 0, message, (), None, extra=extra)
    record.created = 1_795_787_426.123
    return LineFormatter("decode-0").format(record)


def _run(level: str, code: str) -> list[str]:
    """The output of a process with this log level."""
    done = subprocess.run([sys.executable, "-c", PROCESS + code, level], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("extra", "subject"),
    [({}, ""), ({"request": "r1"}, " [request r1]"), ({"operation": "a]: b"}, " [operation a]: b]")],
)
def test_a_line_has_time_process_level_subject_and_message(extra: dict[str, str], subject: str) -> None:
    line = _line("3 corrupt pages", **extra)
    assert line == f"2026-11-27T13:50:26.123Z decode-0 WARNING{subject}: 3 corrupt pages"
    level, message = parse_line(line) or ("", "")
    assert level == "WARNING"
    assert message.endswith("3 corrupt pages")


def test_text_from_outside_cannot_start_a_line_or_move_the_cursor() -> None:
    line = _line("a\r\n\x1b[2Jb\x85c\u2028d", request="r1\nforged")
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert "[request r1\\x0aforged]" in line


@pytest.mark.parametrize(
    "line", ["OSError: no device", "Traceback (most recent call last):", "", ":actor_name:decode-0"]
)
def test_other_lines_are_not_log_lines(line: str) -> None:
    assert parse_line(line) is None


def test_a_level_hides_lower_levels_but_not_the_line_that_names_the_process() -> None:
    code = "log.debug('d'); log.info('i'); log.warning('w'); log.error('e')"
    found = {level: [parse_line(line) for line in _run(level, code)] for level in ("debug", "info", "warning", "error")}
    first = ("INFO", FIRST_WORDS.format("decode-0").strip())
    lines = [("DEBUG", "d"), ("INFO", "i"), ("WARNING", "w"), ("ERROR", "e")]
    for hidden, level in enumerate(("debug", "info", "warning", "error")):
        assert found[level] == [first, *lines[hidden:]]


def test_a_logged_exception_has_its_traceback_and_ends_with_its_message() -> None:
    lines = _run("error", "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('It ended.')")
    assert parse_line(lines[1]) == ("ERROR", "It ended.")
    assert lines[2].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_libraries_log_warnings_in_the_same_format_and_nothing_below() -> None:
    lines = _run("debug", "logging.getLogger('asyncio').info('i'); logging.getLogger('asyncio').warning('w')")
    assert [parse_line(line) for line in lines[1:]] == [("WARNING", "w")]
    assert len(lines) == 2


def test_lines_of_many_threads_stay_whole() -> None:
    code = """
def say(name):
    for count in range(200):
        log.info(f"{name} {count} " + name * 300)
threads = [threading.Thread(target=say, args=(name,)) for name in "abcdefgh"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    messages = [found[1] for line in _run("info", code)[1:] if (found := parse_line(line)) is not None]
    assert sorted(messages) == sorted(f"{name} {count} {name * 300}" for name in "abcdefgh" for count in range(200))
