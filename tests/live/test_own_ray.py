"""What is different in a Ray that Baton starts: how soon it is there, and the priority of its processes."""

from __future__ import annotations

import time

import psutil
import pytest
import ray
from ray._private.services import get_node

from baton.deploy.local_ray import LocalRay
from baton.deploy.ray_start import soon_after_registration
from tests.live.conftest import Live
from tests.reliability.ray_cluster import router_pid

pytestmark = pytest.mark.ray


def test_a_registered_node_is_found_at_once_and_an_unknown_one_is_waited_for(ray_head: LocalRay) -> None:
    (node,) = (each for each in ray.nodes() if each["Alive"])
    found = soon_after_registration(get_node, within_s=60.0)(ray_head.address, node["NodeID"])
    assert found["node_id"] == node["NodeID"]
    began_s = time.monotonic()
    unknown = soon_after_registration(lambda address, node_id: {"asked": node_id}, within_s=0.2)
    assert unknown(ray_head.address, "0" * 56) == {"asked": "0" * 56}
    assert time.monotonic() - began_s >= 0.2


def test_router_and_workers_run_at_the_priority_of_the_command_that_started_ray(split: Live) -> None:
    with split.admin() as admin:
        pids = [worker.pid for pool in admin.cluster().pools for worker in pool.workers]
    priorities = [psutil.Process(pid).nice() for pid in (router_pid("split-"), *pids)]
    assert priorities == [psutil.Process().nice()] * 3
