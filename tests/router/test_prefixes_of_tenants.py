"""A prompt that another tenant sent before is computed again: neither the answer's figures nor its time reveal it."""

from __future__ import annotations

import random

import pytest

from baton.protocol.worker import RoleName
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.token_checker import expected_output
from baton.simulator.virtual_worker import PAGE_SIZE

PROMPT = [(7 * position) % 90 for position in range(5 * PAGE_SIZE + 1)]


def _cluster(share: bool, *roles: RoleName) -> SteppedCluster:
    cluster = SteppedCluster(random.Random(1), num_pages=64, share_prefixes=share)
    for role in roles:
        cluster.add(f"{role.value}-0", role)
    cluster.settle()
    return cluster


def _cached(cluster: SteppedCluster, request_id: str, tenant: str) -> int:
    """Prompt tokens that came from a cache."""
    request = cluster.submit(request_id, PROMPT, 3, tenant)
    cluster.settle()
    assert cluster.shown[request_id] == expected_output(request)
    return cluster.ended[request_id].cached_tokens


@pytest.mark.parametrize("roles", [(RoleName.MIXED,), (RoleName.PREFILL, RoleName.DECODE)])
def test_a_tenant_finds_its_own_prefixes_and_no_others(roles: tuple[RoleName, ...]) -> None:
    cluster = _cluster(False, *roles)
    assert _cached(cluster, "first", "acme") == 0
    assert _cached(cluster, "other", "rival") == 0
    assert _cached(cluster, "nameless", "") == 0
    for tenant in ("acme", "rival", ""):
        assert _cached(cluster, f"again {tenant}", tenant) == 5 * PAGE_SIZE


@pytest.mark.parametrize("roles", [(RoleName.MIXED,), (RoleName.PREFILL, RoleName.DECODE)])
def test_prefixes_are_shared_when_that_is_wanted(roles: tuple[RoleName, ...]) -> None:
    cluster = _cluster(True, *roles)
    assert _cached(cluster, "first", "acme") == 0
    assert _cached(cluster, "other", "rival") == 5 * PAGE_SIZE


@pytest.mark.parametrize("share", [False, True])
def test_the_router_knows_what_the_worker_will_find(share: bool) -> None:
    cluster = _cluster(share, RoleName.MIXED)
    _cached(cluster, "first", "acme")
    for tenant, found in (("acme", True), ("rival", share)):
        cluster.submit(f"next {tenant}", PROMPT, 3, tenant)
        keys = cluster.core.requests.live[f"next {tenant}"].page_keys
        assert (cluster.core.state.cached_on("mixed-0", keys, len(PROMPT)) > 0) is found
        cluster.settle()


@pytest.mark.parametrize("share", [False, True])
def test_reserved_pages_are_matched_by_the_same_rule(share: bool) -> None:
    """Under a policy that hands every request over, the decode worker looks too."""
    from baton.router.policy.policies import make_policy

    cluster = SteppedCluster(
        random.Random(1), num_pages=64, share_prefixes=share, placement=make_policy("least_loaded")
    )
    for role in (RoleName.PREFILL, RoleName.DECODE):
        cluster.add(f"{role.value}-0", role)
    cluster.settle()
    travelled = {}
    for tenant in ("acme", "rival", "acme again"):
        request_id = tenant
        cluster.submit(request_id, PROMPT, 3, tenant.split()[0])
        cluster.settle()
        handoff = cluster.ended[request_id].handoff
        assert handoff is not None
        travelled[tenant] = handoff.pages_sent
    assert travelled["acme again"] < travelled["acme"]
    assert (travelled["rival"] < travelled["acme"]) is share
