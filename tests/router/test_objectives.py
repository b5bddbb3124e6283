"""Objectives that no worker can meet, and requests that continue: both end, and neither delays the rest."""

from __future__ import annotations

import pytest

from baton.protocol.errors import InvalidRequest
from baton.protocol.messages import Prefill
from baton.protocol.request import MAX_OBJECTIVE_S, Objectives, Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.router.core.commands import Command
from baton.router.core.core import RouterCore
from baton.router.policy.placement import PlacementInput
from tests.router.hand_driven import ask, end_of, to_workers
from tests.router.test_ledger import make_core


def submit(core: RouterCore, request_id: str, objectives: Objectives, now: float = 0.0) -> list[Command]:
    request = Request(request_id, (1, 2, 3), SamplingParams(max_tokens=10), now, objectives=objectives)
    return ask(core, request)


def test_an_impossible_tpot_is_refused_at_once_and_blocks_no_other_request() -> None:
    core = make_core(RoleName.PREFILL, RoleName.DECODE)
    for number in range(100):
        commands = submit(core, f"bad{number}", Objectives(tpot_s=1e-4))
        assert end_of(commands).error == "Overloaded"
    assert core.queued == 0
    assert to_workers(submit(core, "good", Objectives(), 1.0), Prefill)


def test_a_resumed_request_is_not_late() -> None:
    objectives = Objectives(ttft_s=1.0)
    core = make_core(RoleName.PREFILL, RoleName.DECODE, num_pages=10_000)
    resumed = PlacementInput("resumed", 1000, objectives=objectives, arrival_s=0.0, resumed=True)
    fresh = [PlacementInput(f"fresh{number}", 900, objectives=objectives, arrival_s=100.0) for number in range(3)]
    verdicts = core.dispatch.placement.decide([resumed, *fresh], core.state, 100.0)
    assert "resumed" in [verdict.request_id for verdict in verdicts]


def test_decode_workers_alone_serve_many_at_once_whatever_the_tpot() -> None:
    """With no prefill worker left a prompt beside decodes is the only way."""
    core = make_core(RoleName.DECODE, num_pages=1000)
    for number in range(8):
        assert to_workers(submit(core, f"r{number}", Objectives(tpot_s=0.012)), Prefill)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e200])
@pytest.mark.parametrize("name", ["ttft_s", "tpot_s"])
def test_an_objective_that_would_spoil_the_forecasts_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(InvalidRequest, match=f"The objective {name} is"):
        Objectives(**{name: seconds}).validate()
    Objectives(**{name: MAX_OBJECTIVE_S}).validate()
