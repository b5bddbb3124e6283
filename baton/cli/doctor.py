"""`baton doctor`: checks a running cluster for leaked pages and slow links."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from baton.cli.admin_options import AdminAddress, Json, document, open_admin, out, print_document
from baton.cli.table import Column, FittingTable, fitting, show
from baton.protocol.v1 import admin_pb2

doctor = typer.Typer(no_args_is_help=True)


@doctor.callback()
def _commands() -> None:
    """Check a running cluster for leaked pages and slow links. Exit code 0: no problem found, 1: a problem.

    The checks change nothing.

    Examples:

        baton doctor leaks --json

        baton doctor links
    """


@doctor.command()
def leaks(
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Duration of the check in seconds.")] = 3.0,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Check that every KV page is free, prefix cache, or in use by a live request. The cluster may keep serving.

    The check compares workers' reports with the router's live requests for a few seconds. Only a difference that lasts
    is a leak.

    Examples:

        baton doctor leaks

        baton doctor leaks --seconds 10 --json
    """
    with open_admin(admin) as client:
        check = client.check_pages(seconds)
    if as_json:
        print_document(document(check))
    else:
        show(out, _table(check))
        for line in _lines(check):
            out.print(line, soft_wrap=True, markup=False)
    if not check.clean:
        raise typer.Exit(1)


COLUMNS = (
    Column("worker"),
    Column("pages", 6, right=True),
    Column("free", 5, right=True),
    Column("cached", 4, right=True),
    Column("in use", 3, right=True),
    Column("accounted", 3, right=True),
    Column("leaked", 1, right=True),
    Column("unknown", 2, right=True),
)


def _table(check: admin_pb2.PageCheck) -> FittingTable:
    rows = []
    for one in check.workers:
        pages = (one.pages_total, one.pages_free, one.pages_cached, one.pages_in_use)
        # A page that several requests share counts for each, so more pages may be accounted for than are in use.
        figures = (*pages, min(one.pages_accounted, one.pages_in_use), one.pages_leaked, len(one.unknown))
        rows.append([one.name, *map(str, figures)])
    return fitting(COLUMNS, rows)


def _lines(check: admin_pb2.PageCheck) -> list[str]:
    """The findings, one sentence each."""
    lines = [f"{check.live_requests} live requests, {check.unanswered_handoffs} handoffs in flight."]
    for one in check.workers:
        if not one.reported:
            lines.append(f"{one.name} sent no report during the check: inconclusive.")
        lines += [f"{one.name} reports {name!r}, which is no live request or reservation." for name in one.unknown]
        if one.pages_leaked:
            lines.append(f"{one.name} has {one.pages_leaked} leaked pages: no live request accounts for them.")
    lines += [f"Handoff {name!r} was never acknowledged by its source." for name in check.lost_handoffs]
    return [*lines, "No leaks."] if check.clean else lines


@doctor.command()
def links(admin: AdminAddress = None, as_json: Json = False) -> None:
    """Show the transfer rate between workers, and links between GPUs that are too slow.

    A link's rate is that of the fastest of its first three writes of 64 MiB or more. Two GPUs of one host
    should reach 20 GB/s; other links are not judged.

    Examples:

        baton doctor links

        baton doctor links --json
    """
    with open_admin(admin) as client:
        measured = client.links()
    if as_json:
        print_document({"links": [document(link) for link in measured]})
    elif not measured:
        out.print("No link is measured yet: a measurement needs three writes of 64 MiB or more between two workers.")
    else:
        show(out, _links_table(measured))
        for link in measured:
            if link.warning:
                out.print(link.warning, soft_wrap=True, markup=False)
    if any(link.warning for link in measured):
        raise typer.Exit(1)


LINK_COLUMNS = (
    Column("from"),
    Column("to"),
    Column("GB/s", right=True),
    Column("host", 1),
    Column("written", 2, right=True),
    Column("took", 3, right=True),
)


def _links_table(measured: Sequence[admin_pb2.Link]) -> FittingTable:
    rows = [
        [
            link.source,
            link.target,
            f"{link.num_bytes / link.seconds / 1e9:.2f}",
            "same" if link.same_host else "other",
            f"{link.num_bytes >> 20} MiB",
            f"{1000 * link.seconds:.1f} ms",
        ]
        for link in measured
    ]
    return fitting(LINK_COLUMNS, rows)
