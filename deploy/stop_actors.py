"""Stops the actors of a cluster, in its own process, which can be killed if Ray hangs."""

from __future__ import annotations

import json
import sys
import time

from baton.deploy.launcher import stop_cluster
from baton.deploy.local_ray import LocalRay
from baton.deploy.ray_connection import connected


def main(ray_address: str, ray_folder: str, prefix: str, goodbye_until_s: str) -> None:
    """Stop the actors, which may send goodbyes until a time of the monotonic clock, and print their names as JSON."""
    with connected(LocalRay(ray_address, ray_folder)):
        names = stop_cluster(prefix, max(0.0, float(goodbye_until_s) - time.monotonic()))
    print(json.dumps([name.removeprefix(prefix) for name in names]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
