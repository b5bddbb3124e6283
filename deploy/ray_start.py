"""Removes the parts that Baton does not use from the Ray that it starts; Ray calls this hook by $RAY_START_HOOK.

gcs_server, raylet and the agent that sets the environment of workers (`placement.*.env`) remain. Baton uses no
dashboard, no metrics of Ray and no Ray Client.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from ray._private import services

IDLE_AGENT = Path(__file__).with_name("idle_agent.py")


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
