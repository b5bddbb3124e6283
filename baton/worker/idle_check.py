"""Checks the page pool's bookkeeping while a worker has nothing to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.engine.kv_pages import PagePool


@dataclass(eq=False)
class IdleCheck:
    """Runs once after each period of work: it takes about 0.25 ms per thousand pages, too long beside steps."""

    pool: PagePool
    _worked: bool = False

    def on_turn(self, worked: bool, idle: bool) -> None:
        """Note a turn of the loop. `idle`: it waited and received no work, and no peer's write is expected.

        Raises `InternalError` when the pool's pages do not add up.
        """
        if worked:
            self._worked = True
        elif idle and self._worked:
            self.pool.check_integrity()
            self._worked = False
