"""The log of a process: one handler on standard error, one format.

    2026-11-27T13:50:26.123Z decode-0 WARNING [request r1]: 3 corrupt pages in r1/2
    time (UTC)               process  level   [request or operation] message

Shells log through `log` and name what a line is about with `extra={"request": id}` or `extra={"operation": id}`.
Pure modules log nothing: what they decide carries its reason, and a shell may log that.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime

log = logging.getLogger("baton")

_SUBJECTS = ("request", "operation")
_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z \S+ (?P<level>[A-Z]+)(?: \[(?:request|operation) .*?\])?: (?P<message>.*)"
)
# An id or a file name from outside must not begin a line of its own, or move the cursor of a terminal.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {0x2028: " ", 0x2029: " "}


class LineFormatter(logging.Formatter):
    """A record as one line, followed by a traceback where there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        subject = next((f" [{kind} {record.__dict__[kind]}]" for kind in _SUBJECTS if kind in record.__dict__), "")
        line = f"{time} {self._process} {record.levelname}{subject}: {record.getMessage()}".translate(_ESCAPES)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(process: str, level: str = "info", first_line: str = "") -> None:
    """Give this process its log, in place of any handler of the root logger.

    `level` is for Baton's own lines; libraries log warnings and errors. `first_line` is written at any level.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(process))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(level.upper())
    if first_line:
        handler.handle(log.makeRecord(log.name, logging.INFO, "", 0, first_line, (), None))


def parse_line(line: str) -> tuple[str, str] | None:
    """(level, message) of a line in this format; None for any other line, such as one of a traceback."""
    found = _LINE.fullmatch(line)
    return (found["level"], found["message"]) if found else None
