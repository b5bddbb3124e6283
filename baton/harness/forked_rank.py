"""Followers of a worker of several ranks, without Ray: forked from the worker's process before it has loaded."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import dataclass

from baton.logs import set_up
from baton.worker.ranks.commands import RankPlan
from baton.worker.ranks.follower import follow

_PR_SET_PDEATHSIG = 1


@dataclass(eq=False)
class ForkedRank:
    """`RankHandle` of a child process."""

    pid: int
    _reaped: bool = False

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        if not self._reaped:
            self._reaped = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        return self._reaped

    def kill(self) -> None:
        """End the process, even a stopped one, and return when it has ended."""
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._reaped = True


def fork_rank(plan: RankPlan) -> ForkedRank:
    """Start a follower. The kernel kills it when the thread that calls this ends, even if the follower is stopped."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return ForkedRank(pid)
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # Else it has ended already
            set_up(f"{plan.worker.name}/{plan.rank}", plan.worker.logging.level, log_format=plan.worker.logging.format)
            follow(plan)
    finally:
        sys.stderr.flush()
        os._exit(1)
