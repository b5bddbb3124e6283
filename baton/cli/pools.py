"""`baton rebalance`, `drain`, `undrain`, `migrate`, `operations` and `cancel`: operations on the pools."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

import typer

from baton.cli.admin_options import (
    AdminAddress,
    Json,
    complete_operations,
    complete_workers,
    document,
    err,
    open_admin,
    out,
    print_document,
)
from baton.cli.cluster_report import planner_line
from baton.cli.operation_progress import print_operations, print_plan
from baton.cli.operation_run import finish
from baton.client.errors import InvalidRequest

Workers = Annotated[
    list[str], typer.Argument(metavar="WORKER...", help="Names of workers.", autocompletion=complete_workers)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
Detach = Annotated[bool, typer.Option("--detach", help="Start it and return; see `baton operations`.")]
OperationId = Annotated[
    str, typer.Option("--operation-id", metavar="ID", help="Asked for twice with the same id, it is done once.")
]


class Switch(Enum):
    ON = "on"
    OFF = "off"


def rebalance(
    prefill: Annotated[int | None, typer.Option(min=0, max=100_000, help="Prefill workers there shall be.")] = None,
    decode: Annotated[int | None, typer.Option(min=0, max=100_000, help="Decode workers there shall be.")] = None,
    auto: Annotated[Switch | None, typer.Option("--auto", help="Whether the planner moves workers by itself.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    detach: Detach = False,
    operation_id: OperationId = "",
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Change how many workers each pool has, while they serve. Shows the plan and asks; Ctrl-C cancels what is left.

    Examples:

        baton rebalance --prefill 3 --decode 1

        baton rebalance --prefill 3 --decode 1 --dry-run

        baton rebalance --prefill 3 --decode 1 --yes --json

        baton rebalance --auto on
    """
    if auto is not None:
        if prefill is not None or decode is not None or dry_run or detach or operation_id:
            raise InvalidRequest("--auto goes alone: the planner chooses the counts and when to move.")
        _set_auto(auto, admin, as_json)
        return
    if prefill is None or decode is None:
        raise InvalidRequest("Give both counts, such as `baton rebalance --prefill 3 --decode 1`, or --auto on or off.")
    asks = not (yes or dry_run)
    if asks and (as_json or not sys.stdin.isatty()):
        raise InvalidRequest("There is nobody to ask: give --yes to do it, or --dry-run to see the plan.")
    with open_admin(admin) as client:
        if asks or dry_run:
            plan = client.rebalance(prefill, decode, operation_id=operation_id, dry_run=True)
            print_document(document(plan)) if as_json else print_plan(out, plan)
            if dry_run:
                return
            if plan.state == "planned" and plan.steps and not typer.confirm("Do it?", err=True):
                err.print("Nothing was changed.")
                raise typer.Exit(1)
        started = client.rebalance(prefill, decode, operation_id=operation_id)
        finish(client, started, detach, as_json)


def _set_auto(auto: Switch, admin: str | None, as_json: bool) -> None:
    with open_admin(admin) as client:
        planner = client.auto(auto is Switch.ON)
    print_document(document(planner)) if as_json else out.print(planner_line(planner), soft_wrap=True)


def drain(
    workers: Workers,
    dry_run: DryRun = False,
    detach: Detach = False,
    operation_id: OperationId = "",
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Give workers nothing new and move what they hold to others of their pool. No pool is left without a worker.

    Examples:

        baton drain decode-1

        baton drain decode-1 decode-2 --detach
    """
    with open_admin(admin) as client:
        started = client.drain(*workers, operation_id=operation_id, dry_run=dry_run)
        finish(client, started, detach, as_json)


def undrain(
    workers: Workers,
    dry_run: DryRun = False,
    detach: Detach = False,
    operation_id: OperationId = "",
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Let drained workers serve again.

    Example:

        baton undrain decode-1
    """
    with open_admin(admin) as client:
        started = client.undrain(*workers, operation_id=operation_id, dry_run=dry_run)
        finish(client, started, detach, as_json)


def migrate(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="A request that decodes.")],
    worker: Annotated[
        str, typer.Argument(help="Where to; the router chooses by default.", autocompletion=complete_workers)
    ] = "",
    dry_run: DryRun = False,
    detach: Detach = False,
    operation_id: OperationId = "",
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Move a running request to another worker. Its client sees neither a gap nor a token twice.

    Examples:

        baton migrate my-request

        baton migrate my-request decode-1
    """
    with open_admin(admin) as client:
        started = client.migrate(request_id, worker, operation_id=operation_id, dry_run=dry_run)
        finish(client, started, detach, as_json)


def operations(admin: AdminAddress = None, as_json: Json = False) -> None:
    """Show the newest operations, the newest first.

    Examples:

        baton operations

        baton operations --json
    """
    with open_admin(admin) as client:
        newest = client.operations()
    if as_json:
        print_document({"operations": [document(one) for one in newest]})
    else:
        print_operations(out, newest)


def cancel(
    operation_id: Annotated[
        str, typer.Argument(metavar="OPERATION", help="Its id.", autocompletion=complete_operations)
    ],
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Undo what an operation has not done yet. What was done stays.

    Example:

        baton cancel 3f9c21ab
    """
    with open_admin(admin) as client:
        operation = client.cancel(operation_id)
    if as_json:
        print_document(document(operation))
    else:
        out.print(f"{operation.title}: {operation.state}. {operation.message}".rstrip(), markup=False, soft_wrap=True)
