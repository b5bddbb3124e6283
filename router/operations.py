"""SCAFFOLD: operations whose steps do nothing but take one tick each."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.errors import InvalidRequest, NotFound
from cluster.worker import RoleName
from router.operation import Ask, Drain, Migrate, Operation, OperationState, Rebalance, Step, StepState, Undrain
from router.policy.cluster_state import ClusterState


@dataclass(eq=False)
class Operations:
    state: ClusterState
    _kept: dict[str, Operation] = field(default_factory=dict)

    def get(self, operation_id: str) -> Operation | None:
        return self._kept.get(operation_id)

    def newest(self) -> list[Operation]:
        return list(reversed(self._kept.values()))

    def start(self, operation_id: str, ask: Ask, dry_run: bool, now: float) -> Operation:
        known = self._kept.get(operation_id)
        if known is not None:
            if known.ask != ask:
                raise InvalidRequest(f"Operation id {operation_id!r} is taken by another operation.")
            return known
        operation = Operation(operation_id, ask, self._steps(ask), now)
        if dry_run:
            operation.state = OperationState.PLANNED
        else:
            self._kept[operation_id] = operation
        return operation

    def _steps(self, ask: Ask) -> list[Step]:
        match ask:
            case Drain(workers) | Undrain(workers):
                for name in workers:
                    if name not in self.state.workers:
                        raise NotFound(f"There is no worker {name!r}.")
                action = "drain" if isinstance(ask, Drain) else "undrain"
                for role in RoleName:
                    pool = [view.name for view in self.state.pool(role) if view.serving]
                    if action == "drain" and pool and set(pool) <= set(workers):
                        raise InvalidRequest(f"The {role.value} pool would be left without a worker.")
                return [Step(name, action) for name in workers]
            case Rebalance(prefill, decode):
                pools = self.state.pool(RoleName.PREFILL), self.state.pool(RoleName.DECODE)
                if prefill + decode != len(pools[0]) + len(pools[1]):
                    raise InvalidRequest(f"There are {len(pools[0]) + len(pools[1])} workers.")
                if prefill < 1 or decode < 1:
                    raise InvalidRequest("A pool would be left without a worker.")
                moving = pools[0][prefill:] + pools[1][decode:]
                to = RoleName.DECODE if pools[0][prefill:] else RoleName.PREFILL
                return [Step(view.name, f"switch to {to.value}", to) for view in moving]
            case Migrate(request_id, _):
                raise NotFound(f"There is no request {request_id!r} that decodes.")
        raise AssertionError(ask)

    def tick(self, now: float) -> list[Operation]:
        moved = []
        for operation in self._kept.values():
            if operation.state.ended:
                continue
            moved.append(operation)
            step = next((step for step in operation.steps if not step.state.ended), None)
            if step is None:
                operation.state, operation.ended_s = OperationState.DONE, now
            elif step.state is StepState.WAITING:
                step.state, step.started_s = StepState.EVACUATING, now
            else:
                step.state, step.ended_s = StepState.DONE, now
                self.state.workers[step.worker].serving = not isinstance(operation.ask, Drain)
        return moved

    def cancel(self, operation_id: str, now: float) -> Operation:
        operation = self._kept.get(operation_id)
        if operation is None:
            raise NotFound(f"There is no operation {operation_id!r}.")
        if not operation.state.ended:
            operation.state, operation.ended_s = OperationState.CANCELLED, now
            for step in operation.steps:
                if not step.state.ended:
                    step.state, step.ended_s = StepState.CANCELLED, now
        return operation
