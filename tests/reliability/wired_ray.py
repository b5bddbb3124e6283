"""A Ray whose head is on this machine and whose other nodes are behind network cables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from baton.deploy.local_ray import LocalRay, start_local_ray
from baton.protocol.errors import ConfigError
from tests.reliability.cables import Cables

START_TIMEOUT_S = 120.0


def wired_ray(
    cables: Cables,
    nodes: Sequence[str],
    cpus: Sequence[int],
    resources: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> LocalRay:
    """Start head and nodes; only the nodes have CPUs, as many as `cpus` says. `LocalRay.stop` ends all of them.

    `resources` are custom ones, by node.
    """
    ray = start_local_ray(options=("--num-cpus=0",), host=cables.address)
    environment = ray.environment()
    try:
        for node, count in zip(nodes, cpus, strict=True):
            address = cables.plug(node)
            command = [
                *("ip", "netns", "exec", cables.namespace(node)),
                *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={ray.address}"),
                *(f"--node-ip-address={address}", f"--num-cpus={count}"),
                f"--resources={json.dumps(resources.get(node, {}))}",
                *("--object-store-memory=80000000", "--disable-usage-stats"),
            ]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_TIMEOUT_S)
            if done.returncode != 0:
                raise ConfigError(f"Ray did not start on {node}: {(done.stdout + done.stderr)[-1000:]}")
    except BaseException:
        ray.stop()
        raise
    return ray
