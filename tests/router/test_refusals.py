"""Refused requests are kept with their causes, in whichever way they were refused."""

from __future__ import annotations

from baton.config.schema import RouterSection
from baton.protocol.request import Objectives, Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.router.core.core import RouterCore
from baton.router.core.refusals import KEPT
from baton.router.policy.policies import make_policy
from tests.router.hand_driven import GATEWAY, ask, join, prompt_of


def _core(**config: float) -> RouterCore:
    """A router with one worker for prompts and answers."""
    section = RouterSection(**config)  # type: ignore[arg-type]
    core = RouterCore("router", make_policy("predicted_latency", True), section)
    join(core, "mixed-0", RoleName.MIXED)
    return core


def _causes(core: RouterCore) -> list[tuple[str, str, str]]:
    return [(one.request_id, one.gateway, one.cause) for one in core.requests.refusals.newest]


def test_a_request_without_room_is_kept_as_refused() -> None:
    core = _core()
    prompt_of(core, "long", 5000, now=1.0)
    assert _causes(core) == [("long", GATEWAY, "PromptTooLong")]
    assert core.requests.refusals.newest[0].at_s == 1.0


def test_a_request_that_would_be_late_is_kept_as_refused() -> None:
    core = _core()
    objectives = Objectives(ttft_s=1e-6)
    ask(core, Request("late", tuple(range(600)), SamplingParams(max_tokens=4), 1.0, objectives=objectives))
    assert _causes(core) == [("late", GATEWAY, "ttft_objective")]


def test_a_request_for_which_no_worker_came_is_kept_as_refused() -> None:
    core = RouterCore(
        "router", make_policy("predicted_latency", True), RouterSection(no_workers_grace_s=5.0), started_s=0.0
    )
    core.tick(0.0)
    prompt_of(core, "lonely", 10, now=0.0)
    assert _causes(core) == []
    core.tick(6.0)
    assert _causes(core) == [("lonely", GATEWAY, "NoWorkers")]


def test_all_are_counted_and_the_newest_kept() -> None:
    core = _core()
    for index in range(KEPT + 5):
        prompt_of(core, f"long-{index}", 5000)
    refusals = core.requests.refusals
    assert refusals.by_cause == {"PromptTooLong": KEPT + 5}
    assert (len(refusals.newest), refusals.newest[-1].request_id) == (KEPT, f"long-{KEPT + 4}")
