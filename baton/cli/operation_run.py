"""Follows a started operation to its end; Ctrl-C cancels it."""

from __future__ import annotations

import signal

import typer
from rich.markup import escape

from baton.cli.admin_options import document, err, out, print_document
from baton.cli.operation_progress import OperationProgress, print_plan
from baton.client.admin import Admin
from baton.client.errors import BatonError
from baton.protocol.v1 import admin_pb2


def finish(admin: Admin, operation: admin_pb2.Operation, detach: bool, as_json: bool) -> None:
    """Show the operation until it has ended; exit code 1 if it was not done.

    A detached operation is only named, and one that is planned (a dry run) is listed.
    """
    if operation.state == "planned":
        print_document(document(operation)) if as_json else print_plan(out, operation)
        return
    if detach:
        started = f"{operation.title}: started as operation {operation.operation_id}."
        print_document(document(operation)) if as_json else out.print(started, markup=False, soft_wrap=True)
        return
    operation = follow(admin, operation, quiet=as_json)
    if as_json:
        print_document(document(operation))
    if operation.state != "done":
        err.print(f"[red]error:[/] {escape(_outcome(operation))}", soft_wrap=True)
        raise typer.Exit(1)
    if not as_json:
        out.print(_outcome(operation), markup=False, soft_wrap=True)


def follow(admin: Admin, operation: admin_pb2.Operation, quiet: bool) -> admin_pb2.Operation:
    """Wait for an operation's end, with progress unless `quiet`; Ctrl-C cancels it and exits with 130.

    Returns the ended operation.
    """
    try:
        with OperationProgress(err, quiet) as progress:
            for operation in admin.watch(operation.operation_id):  # noqa: B020 - a later state of the same operation
                progress.show(operation)
    except KeyboardInterrupt:
        _cancel(admin, operation.operation_id)
        raise typer.Exit(128 + signal.SIGINT) from None
    return operation


def _cancel(admin: Admin, operation_id: str) -> None:
    """Cancel the remaining steps and print the outcome."""
    try:
        operation = admin.cancel(operation_id)
    except BatonError as error:
        err.print(f"Operation {operation_id} could not be cancelled: {escape(error.message)}", soft_wrap=True)
        return
    err.print(f"Cancelled; {escape(_outcome(operation))}", soft_wrap=True)


def _outcome(operation: admin_pb2.Operation) -> str:
    line = f"{operation.title} (operation {operation.operation_id}): {operation.state}"
    return f"{line}, {operation.message}" if operation.message else f"{line} after {operation.elapsed_s:.1f} s."
