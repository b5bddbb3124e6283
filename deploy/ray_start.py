"""What `ray start` does without for the Ray that belongs to Baton; Ray calls it by $RAY_START_HOOK."""

from __future__ import annotations

from typing import Any

from ray._private import utils


def without_extras(params: Any, head: bool) -> None:
    """No Ray Client server, no monitor without an autoscaler, and a dashboard and an agent that serve nothing.

    These two are what Ray has when it is installed without `default`; the raylet ends without an agent.
    """
    params.ray_client_server_port = None
    params.no_monitor = params.autoscaling_config is None
    utils.get_dashboard_dependency_error = lambda: ImportError("Baton uses no dashboard.")
