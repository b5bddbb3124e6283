"""Replaces Ray's dashboard agent: reports that it serves no port, and waits for the raylet to end.

A raylet requires this agent, waits for the files with its ports, and ends when the agent ends. Ray's own agent takes
100 MB and seconds to start, and a machine short of memory kills it first. Run as a file, without site packages.
"""

import os
import sys
import time
from pathlib import Path

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
NO_PORT = "-1"
POLL_S = 1.0


def main(session_dir: str, node_id: str) -> None:
    """Write the port files, each atomically, and wait for the raylet to end."""
    raylet = os.getppid()
    for name in PORTS:
        written = Path(session_dir) / f"{name}_{node_id}.new"
        written.write_text(NO_PORT)
        written.replace(written.with_suffix(""))
    while os.getppid() == raylet:
        time.sleep(POLL_S)


if __name__ == "__main__":
    main(*sys.argv[1:3])  # Ray appends options of its own.
