"""A worker's change of role: another policy object over the same weights, pages and prefix cache."""

from __future__ import annotations

from dataclasses import replace

from baton.decode_worker.role import DecodeRole
from baton.prefill_worker.role import PrefillRole
from baton.protocol.session_messages import RoleChanged, SwitchRole
from baton.protocol.worker import RoleName
from baton.worker.core.role import Role
from baton.worker.core.state import WorkerState


def make_role(name: RoleName, state: WorkerState) -> Role:
    """The policy of a role over a worker's state."""
    return PrefillRole(state) if name is RoleName.PREFILL else DecodeRole(state, name)


def switch_role(role: Role, state: WorkerState, order: SwitchRole) -> tuple[Role, WorkerState, RoleChanged]:
    """The role and state after an order to switch, and the answer to it.

    A role that still holds work stays, because its successor would start without it. A repeated order gets the same
    answer.
    """
    if order.role is role.name and order.role_epoch == state.role_epoch:
        return role, state, RoleChanged(role.name, state.role_epoch)
    held = role.occupancy()
    holds = len(held.request_ids) + len(held.reservation_ids)
    if holds:
        error = f"it still holds {holds} requests or reservations"
        return role, state, RoleChanged(role.name, state.role_epoch, error)
    state = replace(state, role_epoch=order.role_epoch)
    return make_role(order.role, state), state, RoleChanged(order.role, state.role_epoch)
