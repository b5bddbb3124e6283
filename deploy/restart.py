"""One attempt to restart a noted cluster, in its own process: `python -m baton.deploy.restart FOLDER ID`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from baton.deploy.cluster import restart
from baton.logs import log, set_up
from baton.protocol.errors import BatonError


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main(folder: str, cluster_id: str) -> int:
    """Returns the exit code: 0 when the cluster serves, else 1, with the reason as the last line of its log."""
    signal.signal(signal.SIGTERM, _end)
    stages: dict[str, str] = {}

    def report(process: str, stage: str) -> None:
        if stages.get(process) != stage:
            stages[process] = stage
            log.info(f"{process}: {stage}")

    try:
        restart(Path(folder), cluster_id, report)
    except BatonError as error:
        log.error(error.message)
        return 1
    return 0


if __name__ == "__main__":
    set_up("restart")
    sys.exit(main(*sys.argv[1:]))
