"""Has the actors of a cluster say goodbye; a process of its own, so that it can be ended where Ray hangs."""

from __future__ import annotations

import json
import sys

from deploy.launcher import connected, live_actors, stop_cluster
from deploy.local_ray import LocalRay


def main(ray_address: str, ray_folder: str, prefix: str) -> None:
    """Print the names of the actors that live, then stop them."""
    with connected(LocalRay(ray_address, ray_folder)):
        print(json.dumps(live_actors(prefix)), flush=True)
        stop_cluster(prefix)


if __name__ == "__main__":
    main(*sys.argv[1:])
