"""One change of size as a process of its own: python -m tests.live.scale_once POOL DELTA ROUTER_ADDRESS."""

from __future__ import annotations

import sys
import time

import baton
from deploy.scale import scale


def _wait_idle(address: str, names: list[str]) -> None:
    """Drained enough for a test in which nothing new comes: the workers are there, and hold nothing."""
    with baton.Client(address) as client:
        while True:
            workers = {worker.name: worker for pool in client.cluster().pools for worker in pool.workers}
            if not any(workers[name].pages_held for name in names):
                print("drained", *names, flush=True)
                return
            time.sleep(0.05)


if __name__ == "__main__":
    pool, delta, address = sys.argv[1:]
    done = scale(pool, int(delta), lambda names: _wait_idle(address, names), lambda name, stage: print(name, stage))
    print("scaled", *done)
