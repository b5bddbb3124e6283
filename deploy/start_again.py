"""One attempt to bring a noted cluster back, in its own process: `python -m baton.deploy.start_again FOLDER ID`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from baton.deploy.cluster import start_again
from baton.logs import log, set_up
from baton.protocol.errors import BatonError


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main(folder: str, cluster_id: str) -> int:
    """Exit code: 0 when the cluster serves, 1 with a sentence as the last line of its log when it does not."""
    signal.signal(signal.SIGTERM, _end)
    stages: dict[str, str] = {}

    def tell(process: str, stage: str) -> None:
        if stages.get(process) != stage:
            stages[process] = stage
            log.info(f"{process}: {stage}")

    try:
        start_again(Path(folder), cluster_id, tell)
    except BatonError as error:
        log.error(error.message)
        return 1
    return 0


if __name__ == "__main__":
    set_up("start_again")
    sys.exit(main(*sys.argv[1:]))
