"""Matches resumed requests with the workers that kept their sequences. Pure.

Either may arrive first: a request that resumes soon after the router's start waits a moment for workers to join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from baton.config.schema import RouterSection
from baton.protocol.session_messages import Register
from baton.router.core.commands import SendToWorker
from baton.router.core.dispatch import Dispatch
from baton.router.core.events import Adopted
from baton.router.core.explanation import Explanations
from baton.router.core.live_request import LiveRequest
from baton.router.core.orphans import Orphans
from baton.router.policy.placement import RoutingDecision

RESUME_WAIT_S = 2.0  # after the start: how long resumed requests wait for workers to join
Claim = SendToWorker | tuple[str, Adopted]
"""A command for the shell, or an event of a request."""


@dataclass(eq=False)
class Adoption:
    """A request that continues where it ran leaves the queue at once."""

    dispatch: Dispatch
    explanations: Explanations
    records: Mapping[str, LiveRequest]
    config: RouterSection
    started_s: float  # of the router
    continued: int = 0
    orphans: Orphans = field(init=False)

    def __post_init__(self) -> None:
        self.orphans = Orphans(self.config.claim_within_s)

    def on_submitted(self, record: LiveRequest, resumed: bool) -> list[Claim]:
        """A request has arrived, or (`resumed`) asks for the rest of its stream."""
        actions = self._claim(record)
        if resumed and self.config.claim_within_s and self.dispatch.queues(record.request_id):
            self.dispatch.hold_back(record.request_id, self.started_s + RESUME_WAIT_S)
        return actions

    def on_joined(self, registered: Sequence[Register], now: float) -> list[Claim]:
        """Workers have joined with kept sequences; those whose requests already run elsewhere are cancelled."""
        actions: list[Claim] = []
        for worker in registered:
            actions += self.orphans.offer(worker.info.name, worker.held, now)
        # Of two workers with the same sequence, one has been chosen: each request is claimed once.
        for request_id in dict.fromkeys(sequence.request_id for worker in registered for sequence in worker.held):
            record = self.records.get(request_id)
            if record is not None and record.claimable:
                actions += self._claim(record)
            elif record is not None:
                actions += self.orphans.drop(request_id)
        return actions

    def _claim(self, record: LiveRequest) -> list[Claim]:
        found, orders = self.orphans.claim(record.submit)
        if found is None:
            return list(orders)
        worker, num_tokens = found
        view = self.dispatch.state.workers.get(worker)
        num_tokens += view.steps_since_registered if view is not None else 0  # it has decoded on
        self.continued += 1
        self.dispatch.withdraw(record.request_id)
        decision = RoutingDecision(worker, None, True, f"continued: {worker} has kept it and goes on")
        policy, output = self.dispatch.placement.name, record.prediction.distribution
        self.explanations.decided(record.request_id, policy, decision, output)
        return [*orders, (record.request_id, Adopted(worker, num_tokens))]
