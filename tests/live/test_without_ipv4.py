"""A cluster on a machine without IPv4: in its own network namespace, with IPv6 only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.own_network import LOOPBACK_IPV6_ONLY, OWN_NETWORK, needs_own_network

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
CONFIG = '[gateway]\nhost = "::1"\nport = 0\nhttp_port = 0\n[router]\nadmin_host = "::1"\nadmin_port = 0\n'
COMMANDS = f"""
{LOOPBACK_IPV6_ONLY} && ip addr add fd00::1/64 dev lo || exit 9
baton() {{ "$0" -m baton "$@"; }}
baton up --config "$BATON_HOME/cluster.toml" --json &&
baton generate Hello --max-tokens 8 --json && baton status --json
baton down --json
"""


@pytest.mark.slow
@needs_own_network
def test_a_cluster_serves_over_ipv6_alone(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(
        '[gateway]\nhost = "::1"\nport = 0\nhttp_port = 0\n[router]\nadmin_host = "::1"\nadmin_port = 0\n'
    )
    environment = {**os.environ, "BATON_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [*OWN_NETWORK, "sh", "-c", COMMANDS, sys.executable]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.stdout.count("\n") == 4, done.stderr
    up, answer, status, down = map(json.loads, done.stdout.splitlines())
    assert up["address"].startswith("[::1]:")
    assert up["worker_address"].startswith("tcp://[::1]:")
    assert (answer["prefill_worker"], answer["decode_worker"]) == ("prefill-0", "decode-0")
    assert [pool["role"] for pool in status["pools"]] == ["prefill", "decode"]
    assert sorted(down["ended"]) == ["decode-0", "gateway-0", "prefill-0", "router"]
