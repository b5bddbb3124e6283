"""Turns an operator's request into steps, or into the reason why it is refused. Pure."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

from baton.protocol.errors import InvalidRequest, NotFound
from baton.protocol.worker import RoleName
from baton.router.core.operation import Drain, Rebalance, Step, StepState, Undrain
from baton.router.policy.cluster_state import ClusterState, WorkerView

POOLS = (RoleName.PREFILL, RoleName.DECODE)


def steps_for(spec: Drain | Undrain | Rebalance, state: ClusterState) -> list[Step]:
    """The steps, one worker each. Raises `NotFound` or `InvalidRequest`, one sentence, when it is not allowed."""
    match spec:
        case Drain(workers):
            return _drain(workers, state)
        case Undrain(workers):
            return [_undrain(name, state) for name in _distinct(workers)]
        case Rebalance(prefill, decode):
            return _rebalance({RoleName.PREFILL: prefill, RoleName.DECODE: decode}, state)


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
    chosen = _least_loaded(view for view in views if view.role is source)[: abs(to_prefill)]
    return [switch_step(view.name, target) for view in chosen]


def switch_step(worker: str, role: RoleName) -> Step:
    return Step(worker, f"switch to {role.value}", role)


def _least_loaded(views: Iterable[WorkerView]) -> list[WorkerView]:
    """Workers, the one that can be emptied soonest first."""
    return sorted(
        views,
        key=lambda view: (sum(one.tokens for one in view.running.values()), view.pending_prefill_tokens, view.name),
    )
