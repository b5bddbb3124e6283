"""Removes the parts that Baton does not use from the Ray that it starts; Ray calls this hook by $RAY_START_HOOK.

What is left is gcs_server, raylet and the agent that sets the environment of workers (`placement.*.env`): Baton uses no
dashboard, no metrics of Ray and no Ray Client. A `ray start` also ends sooner after its raylet has registered.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray._private import services
from ray._raylet import GcsClient  # type: ignore[attr-defined]

IDLE_AGENT = Path(__file__).with_name("idle_agent.py")
POLL_S = 0.02
REGISTERED_WITHIN_S = 30.0  # after which Ray's own call decides
GetNode = Callable[[str, str], dict[str, Any]]


def without_extras(params: Any, head: bool) -> None:
    """No Ray Client server, no dashboard, no monitor without an autoscaler, and a dashboard agent that only waits.

    Ray has no option for the last: a raylet does not start without a command for its agent.
    """
    params.ray_client_server_port = None
    params.no_monitor = params.autoscaling_config is None
    services.start_api_server = lambda *arguments, **options: (None, None)
    start = services.start_ray_process

    def start_ray_process(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        return start(with_idle_agent(command), process_type, *arguments, **options)

    services.start_ray_process = start_ray_process
    services.get_node = soon_after_registration(services.get_node)


def soon_after_registration(get_node: GetNode, within_s: float = REGISTERED_WITHIN_S) -> GetNode:
    """Ray's `get_node(gcs_address, node_id)`, called once the node has registered, or after `within_s`.

    Ray's own sleeps for a second between its attempts, so that a Ray would start up to a second later.
    """

    def registered_node(gcs_address: str, node_id: str) -> dict[str, Any]:
        client = GcsClient(address=gcs_address)
        deadline = time.monotonic() + within_s
        while not _registered(client, node_id) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return get_node(gcs_address, node_id)

    return registered_node


def _registered(client: GcsClient, node_id: str) -> bool:
    return any(known.hex() == node_id for known in client.get_all_node_info(timeout=REGISTERED_WITHIN_S))


def with_idle_agent(command: list[str]) -> list[str]:
    """A command of Ray's; in a raylet's, idle_agent.py replaces the dashboard agent."""
    return [_idle(word) for word in command]


def _idle(word: str) -> str:
    name, _, value = word.partition("=")
    if name != "--dashboard_agent_command":
        return word
    given = dict(option.partition("=")[::2] for option in value.split())
    idle = [sys.executable, "-I", "-S", str(IDLE_AGENT), given["--session-dir"], given["--node-id"]]
    return f"{name}={subprocess.list2cmdline(idle)}"
