"""`ray start` continues once its node has registered, and no sooner."""

from __future__ import annotations

import time

import ray
from ray._private.services import get_node

from baton.deploy.local_ray import LocalRay
from baton.deploy.ray_start import soon_after_registration


def test_a_registered_node_is_found_at_once_and_an_unknown_one_is_waited_for(ray_head: LocalRay) -> None:
    (node,) = (each for each in ray.nodes() if each["Alive"])
    found = soon_after_registration(get_node, within_s=60.0)(ray_head.address, node["NodeID"])
    assert found["node_id"] == node["NodeID"]
    began_s = time.monotonic()
    unknown = soon_after_registration(lambda address, node_id: {"asked": node_id}, within_s=0.2)
    assert unknown(ray_head.address, "0" * 56) == {"asked": "0" * 56}
    assert time.monotonic() - began_s >= 0.2
