"""Turns an operator's request into steps, or into the reason for refusing it. Pure."""

from __future__ import annotations

import difflib
from collections import Counter

from baton.protocol.errors import InvalidRequest, NotFound
from baton.protocol.worker import RoleName
from baton.router.core.live_request import LiveRequest
from baton.router.core.operation import Drain, Migrate, OperationSpec, Rebalance, Step, StepState, Undrain
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.decode_target import find_capacity

POOLS = (RoleName.PREFILL, RoleName.DECODE)


def plan(spec: OperationSpec, state: ClusterState, records: dict[str, LiveRequest]) -> list[Step]:
    """The steps, one worker each. Raises `NotFound` or `InvalidRequest`, one sentence, when it is not allowed."""
    match spec:
        case Drain(workers):
            return _drain(workers, state)
        case Undrain(workers):
            return [_undrain(name, state) for name in _distinct(workers)]
        case Rebalance(prefill, decode):
            return _rebalance({RoleName.PREFILL: prefill, RoleName.DECODE: decode}, state)
        case Migrate():
            return [_migrate(spec, state, records)]


def _distinct(workers: tuple[str, ...]) -> list[str]:
    if not workers:
        raise InvalidRequest("Name at least one worker; `baton status` lists them.")
    return list(dict.fromkeys(workers))


def _find(name: str, state: ClusterState) -> WorkerView:
    view = state.workers.get(name)
    if view is not None:
        return view
    near = difflib.get_close_matches(name, list(state.workers), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`baton status` lists the workers."
    raise NotFound(f"There is no worker {name!r}: {hint}")


def _serving(state: ClusterState) -> Counter[RoleName]:
    return Counter(view.role for view in state.workers.values() if view.serving)


def check_pools(before: Counter[RoleName], after: Counter[RoleName], what: str) -> None:
    """Raise `InvalidRequest` when a pool would lose its last worker, or no decode worker would remain."""
    for role in RoleName:
        if before[role] and not after[role] and not after[RoleName.MIXED]:
            raise InvalidRequest(
                f"{what} would leave the {role.value} pool without a worker; add one first (`baton scale "
                f"--{role.value} +1`) or undrain another."
            )


def check_still_allowed(step: Step, state: ClusterState) -> None:
    """The same check before and during a step: workers may have died since it was planned."""
    view = state.workers[step.worker]
    after = _serving(state) - Counter([view.role] if view.serving else [])
    check_pools(Counter([view.role]), after, f"To {step.action} {step.worker}")


def _drain(workers: tuple[str, ...], state: ClusterState) -> list[Step]:
    views = [_find(name, state) for name in _distinct(workers)]
    before = _serving(state)
    after = before - Counter(view.role for view in views if view.serving)
    check_pools(before, after, f"Draining {', '.join(view.name for view in views)}")
    return [Step(view.name, "drain") for view in views]


def _undrain(name: str, state: ClusterState) -> Step:
    if name in state.cordoned and name not in state.workers:
        return Step(name, "undrain", state=StepState.DONE, detail="it is away, and serves when it is back")
    view = _find(name, state)
    if view.serving:
        return Step(view.name, "undrain", state=StepState.DONE, detail="it serves already")
    return Step(view.name, "undrain")


def _rebalance(wanted: dict[RoleName, int], state: ClusterState) -> list[Step]:
    views = state.pool(*POOLS)
    counts = Counter(view.role for view in views)
    text = f"{wanted[RoleName.PREFILL]} prefill + {wanted[RoleName.DECODE]} decode"
    if min(wanted.values()) < 1:
        raise InvalidRequest(f"{text} would leave a pool without a worker: each needs at least one.")
    if sum(wanted.values()) != len(views):
        raise InvalidRequest(
            f"{text} asks for {sum(wanted.values())} workers, and {len(views)} serve in the two pools "
            f"({counts[RoleName.PREFILL]} prefill + {counts[RoleName.DECODE]} decode); `baton scale` changes the sum."
        )
    to_prefill = wanted[RoleName.PREFILL] - counts[RoleName.PREFILL]
    source, target = (RoleName.DECODE, RoleName.PREFILL) if to_prefill > 0 else (RoleName.PREFILL, RoleName.DECODE)
    soonest = sorted((view for view in views if view.role is source), key=_work)
    return [Step(view.name, f"switch to {target.value}", target) for view in soonest[: abs(to_prefill)]]


def _work(view: WorkerView) -> tuple[int, int, str]:
    """The less, the sooner the worker is empty."""
    return sum(one.tokens for one in view.running.values()), view.pending_prefill_tokens, view.name


def _migrate(spec: Migrate, state: ClusterState, records: dict[str, LiveRequest]) -> Step:
    record = records.get(spec.request_id)
    if record is None or record.closed:
        raise NotFound(f"Request {spec.request_id!r} is not live.")
    if not record.decoding or record.migrating:
        raise InvalidRequest(f"Request {spec.request_id!r} cannot migrate now: its handoff is in flight.")
    item = record.placement_input
    target = spec.worker or find_capacity(item.num_tokens, item.total_tokens, state, record.decode_worker)
    if target is None:
        raise InvalidRequest(f"No other decode worker has capacity for request {spec.request_id!r}.")
    view = _find(target, state)
    if view.role is RoleName.PREFILL or not view.serving:
        raise InvalidRequest(f"{target} cannot take the request: it is not a serving decode worker.")
    if target in state.unreachable.get(record.decode_worker, ()):
        raise InvalidRequest(f"Pages do not get from {record.decode_worker} to {target} now; choose another worker.")
    if view.info.capacity_tokens < item.total_tokens:
        raise InvalidRequest(f"{target} has too few pages for request {spec.request_id!r} may need in the end.")
    if target == record.decode_worker:
        return Step(target, f"migrate {spec.request_id}", state=StepState.DONE, detail="it is there already")
    return Step(target, f"migrate {spec.request_id}")
