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
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the steps without taking them.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return at once; `baton operations` shows the progress.")]
OperationId = Annotated[
    str,
    typer.Option(
        "--operation-id", metavar="ID", help="Id of the operation; a repeated command with the same id runs only once."
    ),
]


class Switch(Enum):
    """Values of `--auto`."""

    ON = "on"
    OFF = "off"


def rebalance(
    prefill: Annotated[int | None, typer.Option(min=0, max=100_000, help="Target number of prefill workers.")] = None,
    decode: Annotated[int | None, typer.Option(min=0, max=100_000, help="Target number of decode workers.")] = None,
    auto: Annotated[
        Switch | None, typer.Option("--auto", help="Whether the planner switches workers automatically.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Proceed without confirmation.")] = False,
    dry_run: DryRun = False,
    detach: Detach = False,
    operation_id: OperationId = "",
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Change the number of workers in each pool while they serve.

    Shows the steps and asks for confirmation. Ctrl-C cancels the remaining steps.

    Examples:

        baton rebalance --prefill 3 --decode 1

        baton rebalance --prefill 3 --decode 1 --dry-run

        baton rebalance --prefill 3 --decode 1 --yes --json

        baton rebalance --auto on
    """
    if auto is not None:
        if prefill is not None or decode is not None or dry_run or detach or operation_id:
            raise InvalidRequest("--auto cannot be combined with other options: the planner chooses the counts.")
        _set_auto(auto, admin, as_json)
        return
    if prefill is None or decode is None:
        raise InvalidRequest("Give both counts, such as `baton rebalance --prefill 3 --decode 1`, or --auto on or off.")
    asks = not (yes or dry_run)
    if asks and (as_json or not sys.stdin.isatty()):
        raise InvalidRequest("Cannot ask for confirmation here: give --yes to proceed, or --dry-run to see the steps.")
    with open_admin(admin) as client:
        if asks or dry_run:
            plan = client.rebalance(prefill, decode, operation_id=operation_id, dry_run=True)
            print_document(document(plan)) if as_json else print_plan(out, plan)
            if dry_run:
                return
            if plan.state == "planned" and plan.steps and not typer.confirm("Proceed?", err=True):
                err.print("No changes made.")
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
    """Stop new work on workers and migrate their sequences within the pool. A pool keeps at least one worker.

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
    """Return drained workers to their pools.

    Example:

        baton undrain decode-1
    """
    with open_admin(admin) as client:
        started = client.undrain(*workers, operation_id=operation_id, dry_run=dry_run)
        finish(client, started, detach, as_json)


def migrate(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="Id of a request that is decoding.")],
    worker: Annotated[
        str, typer.Argument(help="Target worker. Default: the router chooses.", autocompletion=complete_workers)
    ] = "",
    dry_run: DryRun = False,
    detach: Detach = False,
    operation_id: OperationId = "",
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Move a decoding request to another worker. Its stream continues without a missing or repeated token.

    Examples:

        baton migrate my-request

        baton migrate my-request decode-1
    """
    with open_admin(admin) as client:
        started = client.migrate(request_id, worker, operation_id=operation_id, dry_run=dry_run)
        finish(client, started, detach, as_json)


def operations(admin: AdminAddress = None, as_json: Json = False) -> None:
    """Show recent operations, newest first.

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
        str, typer.Argument(metavar="OPERATION", help="Id of the operation.", autocompletion=complete_operations)
    ],
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Cancel an operation's remaining steps. Completed steps are not rolled back.

    Example:

        baton cancel 3f9c21ab
    """
    with open_admin(admin) as client:
        operation = client.cancel(operation_id)
    if as_json:
        print_document(document(operation))
    else:
        out.print(f"{operation.title}: {operation.state}. {operation.message}".rstrip(), markup=False, soft_wrap=True)
