"""The log of a process: one format, one handler, and no line that an id from outside can forge."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from baton.config.ray_names import FIRST_WORDS
from baton.logs import JsonFormatter, LineFormatter, log, parse_line

PROCESS = """
import logging, sys, threading
from baton.logs import log, set_up
set_up("decode-0", sys.argv[1], "This is worker decode-0.", sys.argv[2])
"""


def _line(message: str, **extra: Any) -> str:
    record = log.makeRecord("baton", logging.WARNING, "", 0, message, (), None, extra=extra)
    record.created = 1_795_787_426.123
    return LineFormatter("decode-0").format(record)


def _run(level: str, code: str, log_format: str = "text") -> list[str]:
    """The output of a process with this log level."""
    done = subprocess.run([sys.executable, "-c", PROCESS + code, level, log_format], capture_output=True, text=True)
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


def test_a_json_line_has_the_same_and_the_fields_that_belong_to_it() -> None:
    record = log.makeRecord(
        "baton", logging.INFO, "", 0, "ended", (), None, extra={"request": "r1", "fields": {"n": 3}}
    )
    record.created = 1_795_787_426.123
    assert json.loads(JsonFormatter("decode-0").format(record)) == {
        "time": "2026-11-27T13:50:26.123Z",
        "level": "INFO",
        "process": "decode-0",
        "message": "ended",
        "request_id": "r1",
        "n": 3,
    }


def test_any_text_makes_one_json_line_that_prints_and_reads_back_as_it_was() -> None:
    message = 'a\r\n\x1b[2Jb\x85c\u2028d\x7f"\\'
    record = log.makeRecord("baton", logging.INFO, "", 0, message, (), None, extra={"operation": "half \ud800"})
    line = JsonFormatter("decode-0").format(record)
    assert line.isprintable()
    assert json.loads(line)["message"] == message
    assert json.loads(line)["operation_id"] == "half \\ud800"
    assert parse_line(line) == ("INFO", message)


def test_text_from_outside_cannot_start_a_line_or_move_the_cursor() -> None:
    line = _line("a\r\n\x1b[2Jb\x85c\u2028d", request="r1\nforged")
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert "[request r1\\x0aforged]" in line


@pytest.mark.parametrize(
    "line",
    ["OSError: no device", "Traceback (most recent call last):", "", ":actor_name:decode-0", "{", '{"level": 3}'],
)
def test_other_lines_are_not_log_lines(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_level_hides_lower_levels_but_not_the_line_that_names_the_process(log_format: str) -> None:
    code = "log.debug('d'); log.info('i'); log.warning('w'); log.error('e')"
    levels = ("debug", "info", "warning", "error")
    found = {level: [parse_line(line) for line in _run(level, code, log_format)] for level in levels}
    first = ("INFO", FIRST_WORDS.format("decode-0"))
    lines = [("DEBUG", "d"), ("INFO", "i"), ("WARNING", "w"), ("ERROR", "e")]
    for hidden, level in enumerate(levels):
        assert found[level] == [first, *lines[hidden:]]


def test_a_logged_exception_has_its_traceback_and_ends_with_its_message() -> None:
    lines = _run("error", "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('It ended.')")
    assert parse_line(lines[1]) == ("ERROR", "It ended.")
    assert lines[2].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_a_logged_exception_is_one_json_line_with_its_traceback() -> None:
    code = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('It ended.')"
    lines = _run("error", code, "json")
    assert len(lines) == 2
    assert json.loads(lines[1])["message"] == "It ended."
    assert json.loads(lines[1])["exception"].startswith("Traceback")
    assert parse_line(lines[1]) == ("ERROR", "ZeroDivisionError: division by zero")


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
