"""Operations on the pools, carried out step by step while requests are served. Pure: the core performs the actions.

    WAITING ─► DRAINING: no new work, its requests finish or migrate ─► DONE (drain)
                   └─► SWITCHING: the worker swaps its role ─► VERIFYING: it answers a request ─► DONE (switch)

One operation on the pools runs at a time, so two never conflict; migrations of single requests may run beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.errors import Conflict, InvalidRequest, NotFound
from baton.protocol.messages import RoleChanged, SwitchRole
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.router.core.commands import OperationUpdated, SendToWorker
from baton.router.core.completion import Completion
from baton.router.core.events import Migrate, Stay
from baton.router.core.live_request import LiveRequest
from baton.router.core.operation import PROBE, Operation, OperationSpec, OperationState, Rebalance, Step, StepState
from baton.router.core.operation import Migrate as MigrateSpec
from baton.router.core.orphans import Orphans
from baton.router.core.pool_steps import check_still_allowed, steps_for
from baton.router.policy.cluster_state import ClusterState
from baton.router.policy.decode_target import find_capacity

REMEMBERED = 200  # operations
RETRY_S = 0.5  # after a failed migration


@dataclass(frozen=True, slots=True)
class Probe:
    """Serve this request on this worker alone, to verify the worker's new role."""

    request: Request
    worker: str
    local: bool  # the worker decodes it, too


Action = SendToWorker | OperationUpdated | Probe | tuple[str, Migrate | Stay]
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

    def start(self, operation_id: str, spec: OperationSpec, dry_run: bool, now: float) -> Operation:
        """Start an operation, or return the one with this id; raises and changes nothing when it is not allowed."""
        known = self._known.get(operation_id)
        if known is not None:
            if known.spec != spec:
                raise InvalidRequest(
                    f"Operation {operation_id!r} already names another operation ({known.spec.title}); choose a new id."
                )
            return known
        if isinstance(spec, MigrateSpec):
            steps = [self._migration_step(spec)]
        else:
            self._check_alone()
            steps = steps_for(spec, self.state)
        self._count += 1
        operation = Operation(operation_id or f"op-{self._count}", spec, steps, now)
        if dry_run:
            operation.state = OperationState.PLANNED
            return operation
        self._known[operation.operation_id] = operation
        for step in steps:
            if step.action == "undrain" and step.worker not in self.state.workers:
                self.state.uncordon(step.worker)
        self._forget_old()
        self.dirty = True
        return operation

    def _check_alone(self) -> None:
        other = next((one for one in self.running if not isinstance(one.spec, MigrateSpec)), None)
        if other is not None:
            raise Conflict(
                f"Operation {other.operation_id} ({other.spec.title}) is under way: wait for it, or end it with "
                f"`baton cancel {other.operation_id}`."
            )

    def _forget_old(self) -> None:
        for operation in list(self._known.values()):
            if len(self._known) <= REMEMBERED:
                return
            if operation.state.ended:
                del self._known[operation.operation_id]

    def _migration_step(self, spec: MigrateSpec) -> Step:
        record = self.records.get(spec.request_id)
        if record is None or record.closed:
            raise NotFound(f"Request {spec.request_id!r} is not live.")
        if not record.decoding or record.migrating:
            raise InvalidRequest(f"Request {spec.request_id!r} cannot migrate now: its handoff is in flight.")
        item = record.placement_input
        target = spec.worker or find_capacity(item.num_tokens, item.total_tokens, self.state, record.decode_worker)
        if target is None:
            raise InvalidRequest(f"No other decode worker has capacity for request {spec.request_id!r}.")
        view = self.state.workers.get(target)
        if view is None:
            raise NotFound(f"There is no worker {target!r}; `baton status` lists them.")
        if view.role is RoleName.PREFILL or not view.serving:
            raise InvalidRequest(f"{target} cannot take the request: it is not a serving decode worker.")
        if target in self.state.unreachable.get(record.decode_worker, ()):
            raise InvalidRequest(
                f"Pages do not get from {record.decode_worker} to {target} now; choose another worker."
            )
        if view.info.capacity_tokens < item.total_tokens:
            raise InvalidRequest(f"{target} has too few pages for request {spec.request_id!r} may need in the end.")
        if target == record.decode_worker:
            return Step(target, f"migrate {spec.request_id}", state=StepState.DONE, detail="it is there already")
        return Step(target, f"migrate {spec.request_id}")

    def cancel(self, operation_id: str, now: float) -> tuple[Operation, list[Action]]:
        """Cancel its remaining steps. A running role switch completes first; completed steps are not rolled back."""
        operation = self.get(operation_id)
        if operation.state.ended:
            return operation, []
        actions: list[Action] = []
        for step in operation.steps:
            if isinstance(operation.spec, MigrateSpec):
                continue  # it is running, and over before a cancellation could arrive
            if step.state in (StepState.WAITING, StepState.DRAINING):
                actions += self._give_up(operation, step, now, "")
        self._conclude(operation, now)
        return operation, [*actions, OperationUpdated(operation)]

    def advance(self, now: float) -> list[Action]:
        """The running operations' next actions; empty when they wait."""
        if not self.dirty:
            return []
        self.dirty = False
        actions: list[Action] = []
        for operation in self.running:
            actions += self._advance(operation, now)
        return actions

    def _advance(self, operation: Operation, now: float) -> list[Action]:
        step = next((step for step in operation.steps if not step.state.ended), None)
        if step is None:
            self._conclude(operation, now)
            return [OperationUpdated(operation)]
        before = (step.state, step.detail)
        actions = self._take(operation, step, now)
        if step.state.ended:
            self.dirty = True
        return [*actions, OperationUpdated(operation)] if (step.state, step.detail) != before else actions

    def _take(self, operation: Operation, step: Step, now: float) -> list[Action]:
        if step.worker not in self.state.workers:
            if step.to_role is not None:
                self.state.uncordon(step.worker)  # it restarts in its original role
            _end(step, StepState.FAILED, now, f"{step.worker} has died")
            return []
        if step.started_s is None:
            step.started_s = now
        match step.state:
            case StepState.WAITING if isinstance(operation.spec, MigrateSpec):
                step.state = StepState.DRAINING
                return [(operation.spec.request_id, Migrate(step.worker))]
            case StepState.WAITING if step.action == "undrain":
                self.state.uncordon(step.worker)
                _end(step, StepState.DONE, now)
            case StepState.WAITING | StepState.DRAINING if not isinstance(operation.spec, MigrateSpec):
                try:
                    check_still_allowed(step, self.state)
                except InvalidRequest as error:
                    return self._give_up(operation, step, now, error.message)
                self.state.cordon(step.worker)
                step.state = StepState.DRAINING
                return self._drain(operation, step, now)
            case StepState.DRAINING if isinstance(operation.spec, MigrateSpec):
                if operation.spec.request_id not in self.records:
                    _end(step, StepState.FAILED, now, "the request ended before it could move")
        return []

    def _give_up(self, operation: Operation, step: Step, now: float, reason: str) -> list[Action]:
        """Let the worker serve again as before."""
        actions: list[Action] = []
        if step.state is StepState.DRAINING:
            actions += [(request_id, Stay()) for request_id in sorted(operation.requested)]
            self.state.uncordon(step.worker)
        _end(step, StepState.FAILED if reason else StepState.CANCELLED, now, reason)
        return actions

    def _drain(self, operation: Operation, step: Step, now: float) -> list[Action]:
        """Migrate its decoding sequences; its other work ends by itself."""
        held = [record for record in self.records.values() if step.worker in record.holders]
        left = len(held) + len(self.orphans.on(step.worker))
        if not left:
            operation.requested.clear()
            if step.to_role is None:
                _end(step, StepState.DONE, now)
                return []
            step.state, step.detail = StepState.SWITCHING, ""
            return [SendToWorker(step.worker, SwitchRole(step.to_role, self.state.epoch(step.worker) + 1))]
        step.detail = f"{left} request{'s' if left > 1 else ''} left"
        moving = [record.request_id for record in held if record.decode_worker == step.worker and record.may_move(now)]
        operation.requested |= set(moving)
        return [(request_id, Migrate(None)) for request_id in moving]

    def on_role_changed(self, worker: str, answer: RoleChanged, now: float) -> list[Action]:
        """The worker has switched its role, or reports why not."""
        for operation, step in self._waiting_for(worker, StepState.SWITCHING):
            if answer.error or answer.role is not step.to_role:
                self.state.uncordon(worker)
                _end(step, StepState.FAILED, now, f"{worker} kept its role: {answer.error or 'it has another one'}")
                return [OperationUpdated(operation)]
            step.state = StepState.VERIFYING
            return [_probe(operation, step), OperationUpdated(operation)]
        return []

    def on_probe_ended(self, probe: Completion, now: float) -> None:
        """The outcome of a verifying request."""
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
        for state in (StepState.SWITCHING, StepState.VERIFYING):
            for _, step in self._waiting_for(worker, state):
                self.state.uncordon(worker)
                _end(step, StepState.FAILED, now, f"{worker} has died")

    def on_migration_ended(self, request_id: str, worker: str | None, reason: str, now: float) -> None:
        """A request has migrated, or stays for `reason`."""
        for operation in self.running:
            if isinstance(operation.spec, MigrateSpec) and operation.spec.request_id == request_id:
                state = StepState.DONE if worker is not None else StepState.FAILED
                for step in operation.steps:
                    if not step.state.ended:
                        _end(step, state, now, f"it stays where it is: {reason}" if worker is None else "")
        self.dirty = True

    def _waiting_for(self, worker: str, state: StepState) -> list[tuple[Operation, Step]]:
        self.dirty = True
        steps = [(operation, step) for operation in self.running for step in operation.steps]
        return [(operation, step) for operation, step in steps if step.worker == worker and step.state is state]

    def _conclude(self, operation: Operation, now: float) -> None:
        """End it, once no step is running."""
        if not all(step.state.ended for step in operation.steps):
            return
        failed = [step for step in operation.steps if step.state is StepState.FAILED]
        cancelled = any(step.state is StepState.CANCELLED for step in operation.steps)
        operation.ended_s = now
        if failed:
            operation.state, operation.message = OperationState.FAILED, failed[0].detail
        elif cancelled:
            operation.state, operation.message = OperationState.CANCELLED, "it was cancelled; what was done stays"
        else:
            operation.state = OperationState.DONE
            nothing = isinstance(operation.spec, Rebalance) and not operation.steps
            operation.message = "the pools are so already" if nothing else ""


def _end(step: Step, state: StepState, now: float, detail: str = "") -> None:
    step.state, step.detail, step.ended_s = state, detail, now


def _probe(operation: Operation, step: Step) -> Probe:
    """A request that only a worker in its new role completes: a prompt and, where it decodes, a decode step."""
    decodes = step.to_role is not RoleName.PREFILL
    sampling = SamplingParams(max_tokens=2 if decodes else 1, ignore_eos=True, seed=0)
    return Probe(Request(f"{PROBE}{operation.operation_id}/{step.worker}", (0,), sampling), step.worker, decodes)
