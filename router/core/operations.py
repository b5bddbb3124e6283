"""Operations on the pools, carried out step by step while requests are served. Pure: the core performs the actions.

    WAITING ─► DRAINING: no new work, its requests finish or migrate ─► DONE (drain)
                   └─► SWITCHING: the worker swaps its role ─► VERIFYING: it answers a request ─► DONE (switch)

One operation on the pools runs at a time, so two never conflict; migrations of single requests may run beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.errors import Conflict, InvalidRequest, NotFound
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import RoleChanged, SwitchRole
from baton.protocol.worker import RoleName
from baton.router.core import events
from baton.router.core.commands import OperationUpdated, SendToWorker
from baton.router.core.completion import Completion
from baton.router.core.live_request import LiveRequest
from baton.router.core.operation import (
    PROBE,
    Migrate,
    Operation,
    OperationSpec,
    OperationState,
    Step,
    StepState,
    Undrain,
)
from baton.router.core.orphans import Orphans
from baton.router.core.pool_steps import check_still_allowed, plan
from baton.router.policy.cluster_state import ClusterState

REMEMBERED = 200  # operations
RETRY_S = 0.5  # after a failed migration


@dataclass(frozen=True, slots=True)
class Probe:
    """Serve this request on this worker alone, to verify the worker's new role."""

    request: Request
    worker: str
    local: bool  # the worker decodes it, too


Action = SendToWorker | OperationUpdated | Probe | tuple[str, events.Migrate | events.Stay]
"""A command for the shell, a request to serve, or an event of a request."""


@dataclass(eq=False)
class Operations:
    """`advance` returns the next actions; set `dirty` when a step's condition may have changed."""

    state: ClusterState
    records: dict[str, LiveRequest]
    orphans: Orphans
    dirty: bool = False
    _known: dict[str, Operation] = field(default_factory=dict)  # oldest first
    _count: int = 0

    def get(self, operation_id: str) -> Operation:
        """Raises `NotFound`."""
        found = self._known.get(operation_id)
        if found is None:
            raise NotFound(f"Operation {operation_id!r} not found; `baton operations` lists them.")
        return found

    def newest(self) -> list[Operation]:
        return list(reversed(self._known.values()))

    @property
    def running(self) -> list[Operation]:
        return [operation for operation in self._known.values() if operation.state is OperationState.RUNNING]

    @property
    def on_pools(self) -> Operation | None:
        """The running operation on the pools."""
        return next((one for one in self.running if not isinstance(one.spec, Migrate)), None)

    def start(self, operation_id: str, spec: OperationSpec, dry_run: bool, now: float) -> Operation:
        """Start an operation, or return the one with this id; raises and changes nothing when it is not allowed."""
        known = self._known.get(operation_id)
        if known is not None:
            if known.spec != spec:
                raise InvalidRequest(
                    f"Operation {operation_id!r} already names another operation ({known.spec.title}); choose a new id."
                )
            return known
        other = self.on_pools
        if other is not None and not isinstance(spec, Migrate):
            raise Conflict(
                f"Operation {other.operation_id} ({other.spec.title}) is under way: wait for it, or end it with "
                f"`baton cancel {other.operation_id}`."
            )
        steps = plan(spec, self.state, self.records)
        self._count += 1
        operation = Operation(operation_id or f"op-{self._count}", spec, steps, now)
        if dry_run:
            operation.state = OperationState.PLANNED
            return operation
        self._known[operation.operation_id] = operation
        for step in steps:
            if isinstance(spec, Undrain):
                self.state.uncordon(step.worker)  # also one that is away
        ended = [one.operation_id for one in self._known.values() if one.state.ended]
        for old in ended[: max(0, len(self._known) - REMEMBERED)]:
            del self._known[old]
        self.dirty = True
        return operation

    def cancel(self, operation_id: str, now: float) -> tuple[Operation, list[Action]]:
        """Cancel its remaining steps. A running role switch completes first; completed steps are not rolled back."""
        operation = self.get(operation_id)
        if operation.state.ended or isinstance(operation.spec, Migrate):
            return operation, []  # a migration is over before a cancellation could arrive
        actions: list[Action] = []
        for step in operation.steps:
            if step.state in (StepState.WAITING, StepState.DRAINING):
                actions += self._give_up(step, now, "")
        self.dirty = True
        return operation, [*actions, OperationUpdated(operation)]

    def advance(self, now: float) -> list[Action]:
        """The running operations' next actions; empty when they wait."""
        if not self.dirty:
            return []
        self.dirty = False
        return [action for operation in self.running for action in self._advance(operation, now)]

    def _advance(self, operation: Operation, now: float) -> list[Action]:
        step = next((step for step in operation.steps if not step.state.ended), None)
        if step is None:
            operation.end(now)
            return [OperationUpdated(operation)]
        before = (step.state, step.detail)
        actions = self._take(operation.spec, step, now)
        if step.state.ended:
            self.dirty = True
        return [*actions, OperationUpdated(operation)] if (step.state, step.detail) != before else actions

    def _take(self, spec: OperationSpec, step: Step, now: float) -> list[Action]:
        if step.worker not in self.state.workers:
            if step.to_role is not None:
                self.state.uncordon(step.worker)  # it restarts in its original role
            _end(step, StepState.FAILED, now, f"{step.worker} has died")
            return []
        if step.started_s is None:
            step.started_s = now
        if isinstance(spec, Migrate):
            return self._migrate(spec.request_id, step, now)
        if isinstance(spec, Undrain):
            _end(step, StepState.DONE, now)
        elif step.state in (StepState.WAITING, StepState.DRAINING):
            return self._drain(step, now)
        return []

    def _migrate(self, request_id: str, step: Step, now: float) -> list[Action]:
        """Order the migration; `on_migration_ended` has its outcome."""
        if step.state is StepState.WAITING:
            step.state = StepState.DRAINING
            return [(request_id, events.Migrate(step.worker))]
        if request_id not in self.records:
            _end(step, StepState.FAILED, now, "the request ended before it could move")
        return []

    def _drain(self, step: Step, now: float) -> list[Action]:
        """The worker gets no new work; its sequences migrate, its other work ends by itself. Then it may switch."""
        worker, requests = step.worker, self.records.values()
        try:
            check_still_allowed(step, self.state)
        except InvalidRequest as error:
            return self._give_up(step, now, error.message)
        self.state.cordon(worker)
        left = sum(worker in one.holders for one in requests) + len(self.orphans.on(worker))
        if left:
            step.state, step.detail = StepState.DRAINING, f"{left} request{'s' if left > 1 else ''} left"
            movable = [one.request_id for one in requests if one.runner == worker and one.may_move(now)]
            return [(request_id, events.Migrate(None)) for request_id in movable]
        if step.to_role is None:
            _end(step, StepState.DONE, now)
            return []
        step.state, step.detail = StepState.SWITCHING, ""
        return [SendToWorker(worker, SwitchRole(step.to_role, self.state.epoch(worker) + 1))]

    def _give_up(self, step: Step, now: float, reason: str) -> list[Action]:
        """The worker serves on as before. Without a `reason`, the step was cancelled."""
        began = step.state is StepState.DRAINING
        _end(step, StepState.FAILED if reason else StepState.CANCELLED, now, reason)
        if not began:
            return []
        self.state.uncordon(step.worker)
        requests = self.records.values()
        return [(one.request_id, events.Stay()) for one in requests if one.runner == step.worker and one.migrating]

    def on_role_changed(self, worker: str, answer: RoleChanged, now: float) -> list[Action]:
        """The worker has switched its role and is verified, or reports why not."""
        for operation, step in self._waiting_for(worker, StepState.SWITCHING):
            if not answer.error and answer.role is step.to_role:
                step.state = StepState.VERIFYING
                return [_probe(operation, step), OperationUpdated(operation)]
            self.state.uncordon(worker)
            _end(step, StepState.FAILED, now, f"{worker} kept its role: {answer.error or 'it has another one'}")
        return []

    def on_probe_ended(self, probe: Completion, now: float) -> None:
        """The outcome of a verifying request: the worker serves again, or stays drained."""
        worker = probe.prefill_worker
        for _, step in self._waiting_for(worker, StepState.VERIFYING):
            if probe.error is not None:
                reason = f"{worker} does not serve in its new role and stays drained: {probe.error.message}"
                _end(step, StepState.FAILED, now, reason)
            else:
                self.state.uncordon(worker)
                _end(step, StepState.DONE, now)

    def on_worker_lost(self, worker: str, now: float) -> None:
        """A worker that returns under the name has forgotten a running switch."""
        for _, step in self._waiting_for(worker, StepState.SWITCHING, StepState.VERIFYING):
            self.state.uncordon(worker)
            _end(step, StepState.FAILED, now, f"{worker} has died")

    def on_migration_ended(self, request_id: str, worker: str | None, reason: str, now: float) -> None:
        """A request has migrated, or stays for `reason`."""
        self.dirty = True
        end = (StepState.FAILED, now, f"it stays where it is: {reason}") if worker is None else (StepState.DONE, now)
        for operation in self.running:
            if isinstance(operation.spec, Migrate) and operation.spec.request_id == request_id:
                for step in operation.steps:
                    if not step.state.ended:
                        _end(step, *end)

    def _waiting_for(self, worker: str, *states: StepState) -> list[tuple[Operation, Step]]:
        self.dirty = True
        steps = [(operation, step) for operation in self.running for step in operation.steps]
        return [(operation, step) for operation, step in steps if step.worker == worker and step.state in states]


def _end(step: Step, state: StepState, now: float, detail: str = "") -> None:
    step.state, step.detail, step.ended_s = state, detail, now


def _probe(operation: Operation, step: Step) -> Probe:
    """A request that only a worker in its new role completes: a prompt and, where it decodes, a decode step."""
    decodes = step.to_role is not RoleName.PREFILL
    sampling = SamplingParams(max_tokens=2 if decodes else 1, ignore_eos=True, seed=0)
    return Probe(Request(f"{PROBE}{operation.operation_id}/{step.worker}", (0,), sampling), step.worker, decodes)
