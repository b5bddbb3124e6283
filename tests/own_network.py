"""A network namespace with IPv6 only, for tests of machines without IPv4."""

from __future__ import annotations

import shutil
import subprocess

import pytest

# Runs a command in new namespaces; its processes end with it.
OWN_NETWORK = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
LOOPBACK_IPV6_ONLY = "ip link set lo up && ip addr flush dev lo && ip addr add ::1/128 dev lo"


def _is_allowed() -> bool:
    command = [*OWN_NETWORK, "ip", "link", "set", "lo", "up"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


needs_own_network = pytest.mark.skipif(not _is_allowed(), reason="makes a network of its own, in a user namespace")
