"""Shared by the operators' commands: the cluster's address, completion of names, and JSON documents."""

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
        help="Address of the admin port. Default: the cluster that `baton up` started here, or port 50052.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

Names = list[tuple[str, str]]  # (completion, description)


def open_admin(address: str | None, timeout_s: float | None = None) -> Admin:
    """An admin client for `address`; by default for the cluster that `baton up` started here, or the default port."""
    from baton.client.admin import TIMEOUT_S, Admin

    if address is None:
        from baton.deploy.look import serving_cluster

        cluster = serving_cluster()
        address = cluster.admin_address if cluster else None
    return Admin(address, timeout_s or TIMEOUT_S)


def document(message: Any) -> dict[str, Any]:
    """A message as JSON values, including fields with default values."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_document(values: Any) -> None:
    """Print a JSON document on one line, without buffering."""
    print(json.dumps(values), flush=True)


def complete_workers(ctx: typer.Context, incomplete: str) -> Names:
    """Names of the running cluster's workers, except those already typed."""
    typed = ctx.params.get("workers") or ()
    return [name for name in _fetch(ctx, _workers) if name[0].startswith(incomplete) and name[0] not in typed]


def complete_policies(ctx: typer.Context, incomplete: str) -> Names:
    """Names of the running router's policies."""
    return [name for name in _fetch(ctx, _policies) if name[0].startswith(incomplete)]


def complete_operations(ctx: typer.Context, incomplete: str) -> Names:
    """Ids of running operations."""
    return [name for name in _fetch(ctx, _running) if name[0].startswith(incomplete)]


def _fetch(ctx: typer.Context, fetch: Callable[[Admin], Names]) -> Names:
    """Names from the running cluster; none if it does not answer, because an error would end up in the command line."""
    try:
        with open_admin(ctx.params.get("admin"), COMPLETION_TIMEOUT_S) as admin:
            return fetch(admin)
    except BatonError:
        return []


def _workers(admin: Admin) -> Names:
    pools = admin.cluster().pools
    return [(worker.name, f"{pool.role}, {worker.state}") for pool in pools for worker in pool.workers]


def _policies(admin: Admin) -> Names:
    policy = admin.policy()
    return [(name, "in use" if name == policy.name else "") for name in policy.known]


def _running(admin: Admin) -> Names:
    return [(one.operation_id, one.title) for one in admin.operations() if one.state == "running"]
