"""Explanations of placement decisions, and clusters with another policy than the default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.client.errors import NotFound, Overloaded
from baton.deploy.launcher import stop_cluster
from baton.deploy.local_ray import LocalRay
from baton.protocol.request import Objectives
from tests.live.conftest import Live, start_live

pytestmark = pytest.mark.ray


def test_a_finished_request_is_explained(brain: Live) -> None:
    with brain.client() as client, brain.admin() as admin:
        answer = client.generate([5, 6, 7, 8], request_id="why", max_tokens=4, ignore_eos=True)
        explanation = admin.explain("why")
    assert (explanation.request_id, explanation.policy) == ("why", "predicted_latency")
    assert (explanation.prefill_worker, explanation.decode_worker) == (answer.prefill_worker, answer.decode_worker)
    assert explanation.state == "finished"
    assert explanation.output_tokens == 4
    # The router measures when messages arrive, the gateway when tokens do.
    assert explanation.ttft_s == pytest.approx(answer.ttft_s, abs=0.1)
    assert explanation.tpot_s == pytest.approx(answer.tpot_s, abs=0.1)
    assert "4 of 4 tokens to compute" in explanation.why
    first = explanation.candidates[0]
    assert (first.worker, first.uncached_tokens) == (explanation.prefill_worker, 4)
    assert 0 < first.ttft_s < 60
    assert 0 < explanation.output_tokens_p50 <= explanation.output_tokens_p90


def test_an_unknown_request_is_not_found(brain: Live) -> None:
    with brain.admin() as admin, pytest.raises(NotFound, match="never-sent"):
        admin.explain("never-sent")


def test_refused_requests_are_counted(brain: Live) -> None:
    with brain.client() as client, brain.admin() as admin:
        before = admin.cluster().refused_requests
        with pytest.raises(Overloaded):
            client.generate([1] * 100, max_tokens=2, objectives=Objectives(ttft_s=1e-6))
        assert admin.cluster().refused_requests == before + 1


@pytest.fixture(scope="module")
def round_robin(ray_head: LocalRay, checkpoint: Path) -> Iterator[Live]:
    """Two prefill and one decode worker under round robin."""
    yield start_live(checkpoint, "robin-", {"prefill": 2, "decode": 1}, policy="round_robin")
    stop_cluster("robin-")


def test_another_policy_serves(round_robin: Live) -> None:
    with round_robin.client() as client, round_robin.admin() as admin:
        answers = [client.generate([9, 8, number], max_tokens=3, ignore_eos=True) for number in range(4)]
        explanation = admin.explain(answers[0].request_id)
    assert [answer.prefill_worker for answer in answers] == ["prefill-0", "prefill-1"] * 2
    assert {answer.decode_worker for answer in answers} == {"decode-0"}
    assert explanation.policy == "round_robin"
    assert list(explanation.candidates) == []
    cluster = round_robin.wait_idle()
    assert cluster.settings["policy"] == "round_robin"
