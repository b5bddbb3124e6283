"""Ray starts without its dashboard agent: the replaced command, and the process that stands in for the agent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from baton.deploy.processes import noted_process
from baton.deploy.ray_start import IDLE_AGENT, with_idle_agent
from tests.waiting import until

PORTS = {"dashboard_agent_listen_port": "-1", "metrics_agent_port": "-1", "metrics_export_port": "-1"}


def test_the_dashboard_agent_of_a_raylet_is_replaced_and_nothing_else() -> None:
    command = [
        "/ray/raylet",
        "--node_id=abc",
        "--python_worker_command=/bin/python worker.py --node-id=abc",
        "--dashboard_agent_command=/bin/python agent.py --node-id=abc --session-dir=/tmp/s --head",
        "--runtime_env_agent_command=/bin/python main.py --node-id=abc --session-dir=/tmp/s",
    ]
    idle = f"--dashboard_agent_command={sys.executable} -I -S {IDLE_AGENT} /tmp/s abc"
    assert with_idle_agent(command) == [*command[:3], idle, command[4]]


def test_an_idle_agent_reports_that_it_serves_nothing_and_ends_with_its_raylet(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(IDLE_AGENT), str(tmp_path), "abc", "--of-ray"]
    raylet = f"import subprocess; print(subprocess.Popen({command!r}).pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", raylet], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        agent = noted_process("agent", int(process.stdout.readline()))
        assert agent is not None
        until(lambda: {path.name for path in tmp_path.iterdir()} == {f"{name}_abc" for name in PORTS})
        assert {name: (tmp_path / f"{name}_abc").read_text() for name in PORTS} == PORTS
        assert agent.lives
        process.kill()
    until(lambda: not agent.lives)
