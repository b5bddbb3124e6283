"""What the operators' commands share: how they find the cluster, complete names and print documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from baton.client.errors import BatonError

if TYPE_CHECKING:
    from baton.client.admin import Admin

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
COMPLETION_TIMEOUT_S = 1.0

AdminAddress = Annotated[
    str | None,
    typer.Option(
        "--admin",
        metavar="HOST:PORT",
        envvar="BATON_ADMIN_ADDRESS",
        help="Address of the admin port; default: the cluster that `up` started here, or port 50052.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document, for scripts.")]

Names = list[tuple[str, str]]  # what can be typed, and what it is


def open_admin(address: str | None, timeout_s: float | None = None) -> Admin:
    """A client of the administration at `address`, or of the cluster that `up` noted, or of the default port."""
    from baton.client.admin import TIMEOUT_S, Admin

    if address is None:
        from baton.deploy.look import serving_cluster

        cluster = serving_cluster()
        address = cluster.admin_address if cluster else None
    return Admin(address, timeout_s or TIMEOUT_S)


def document(message: Any) -> dict[str, Any]:
    """A message as JSON shows it, with the fields that are zero."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_document(values: Any) -> None:
    """One JSON document on one line, at once."""
    print(json.dumps(values), flush=True)


def complete_workers(ctx: typer.Context, incomplete: str) -> Names:
    """Names of the running cluster's workers, less those already typed."""
    typed = ctx.params.get("workers") or ()
    return [name for name in _asked(ctx, _workers) if name[0].startswith(incomplete) and name[0] not in typed]


def complete_policies(ctx: typer.Context, incomplete: str) -> Names:
    """Names of the policies that the running router knows."""
    return [name for name in _asked(ctx, _policies) if name[0].startswith(incomplete)]


def complete_operations(ctx: typer.Context, incomplete: str) -> Names:
    """Ids of the operations under way."""
    return [name for name in _asked(ctx, _running) if name[0].startswith(incomplete)]


def _asked(ctx: typer.Context, ask: Callable[[Admin], Names]) -> Names:
    """What the running cluster says; nothing when none answers soon, for an error would end up in the shell's line."""
    try:
        with open_admin(ctx.params.get("admin"), COMPLETION_TIMEOUT_S) as admin:
            return ask(admin)
    except BatonError:
        return []


def _workers(admin: Admin) -> Names:
    pools = admin.cluster().pools
    return [(worker.name, f"{pool.role}, {worker.state}") for pool in pools for worker in pool.workers]


def _policies(admin: Admin) -> Names:
    policy = admin.policy()
    return [(name, "decides now" if name == policy.name else "") for name in policy.known]


def _running(admin: Admin) -> Names:
    return [(one.operation_id, one.title) for one in admin.operations() if one.state == "running"]
