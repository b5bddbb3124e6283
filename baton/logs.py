"""The log of a process: one handler on standard error, one format.

    2026-11-27T13:50:26.123Z decode-0 WARNING [request r1]: 3 corrupt pages in r1/2
    time (UTC)               process  level   [request or operation] message

    {"time":"2026-11-27T13:50:26.123Z","level":"WARNING","process":"decode-0","message":"3 corrupt …","request_id":"r1"}

Shells log through `log` and name what a line is about with `extra={"request": id}` or `extra={"operation": id}`.
`extra={"fields": {…}}` adds members to a JSON line. Pure modules log nothing: what they decide carries its reason, and
a shell may log that.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

log = logging.getLogger("baton")
access_log = logging.getLogger("baton.access")  # One line per ended request, at any level of `log`

LogFormat = Literal["text", "json"]

_SUBJECTS = ("request", "operation")
_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z \S+ (?P<level>[A-Z]+)(?: \[(?:request|operation) .*?\])?: (?P<message>.*)"
)
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
# An id or a file name from outside must not begin a line of its own, or move the cursor of a terminal.
_ESCAPES = {code: f"\\x{code:02x}" for code in _CONTROLS} | {0x2028: " ", 0x2029: " "}
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in (*_CONTROLS, 0x2028, 0x2029) if code >= 0x7F}


class LineFormatter(logging.Formatter):
    """A record as one line, followed by a traceback where there is one."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        subject = next((f" [{kind} {record.__dict__[kind]}]" for kind in _SUBJECTS if kind in record.__dict__), "")
        line = f"{_time(record)} {self._process} {record.levelname}{subject}: {record.getMessage()}".translate(_ESCAPES)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line, with its traceback inside."""

    def __init__(self, process: str) -> None:
        super().__init__()
        from orjson import dumps  # A client's installation lacks it

        self._process, self._dumps = process, dumps

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "process": self._process,
            "message": record.getMessage(),
        }
        line |= {f"{kind}_id": record.__dict__[kind] for kind in _SUBJECTS if kind in record.__dict__}
        line |= record.__dict__.get("fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self._dumps({key: _encodable(value) for key, value in line.items()}).decode().translate(_JSON_ESCAPES)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _encodable(value: Any) -> Any:
    """File names may have half characters, which JSON cannot have."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def set_up(
    process: str, level: str = "info", first_line: str = "", log_format: LogFormat = "text", access: bool = False
) -> None:
    """Give this process its log, in place of any handler of the root logger.

    `level` is for Baton's own lines; libraries log warnings and errors. `first_line` is written at any level, and so
    are the lines of `access_log` if `access` is set.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else LineFormatter(process))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(level.upper())
    access_log.setLevel(logging.INFO if access else logging.CRITICAL)
    if first_line:
        handler.handle(log.makeRecord(log.name, logging.INFO, "", 0, first_line, (), None))


def parse_line(line: str) -> tuple[str, str] | None:
    """(level, message) of a line in either format; None for any other line, such as one of a traceback.

    A JSON line has its traceback inside: the message is then the traceback's last line, which ends the text format.
    """
    if line.startswith("{"):
        return _parse_json(line)
    found = _LINE.fullmatch(line)
    return (found["level"], found["message"]) if found else None


def _parse_json(line: str) -> tuple[str, str] | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    level, message, exception = (fields.get(key) for key in ("level", "message", "exception"))
    if not isinstance(level, str) or not isinstance(message, str):
        return None
    lines = exception.strip().splitlines() if isinstance(exception, str) else []
    return level, lines[-1] if lines else message
