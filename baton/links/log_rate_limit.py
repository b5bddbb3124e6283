"""Rate limiter for log lines about invalid input, so that no peer can fill a disk."""

from __future__ import annotations

from dataclasses import dataclass

EVERY_S = 5.0


@dataclass(slots=True, eq=False)
class LogRateLimit:
    """Counts suppressed lines, and reports the count with the next line."""

    _next_s: float = float("-inf")
    _unsaid: int = 0

    def line(self, text: str, now: float) -> str | None:
        """The line to log now, if any."""
        if now < self._next_s:
            self._unsaid += 1
            return None
        more = f" (and {self._unsaid} more like it before)" if self._unsaid else ""
        self._next_s, self._unsaid = now + EVERY_S, 0
        return text + more
