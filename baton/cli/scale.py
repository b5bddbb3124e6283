"""`baton scale`: start and stop workers while the cluster serves."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from baton.cli.admin_options import AdminAddress, Json, err, open_admin, out, print_document
from baton.cli.operation_run import follow
from baton.cli.progress import StartProgress
from baton.client.admin import Admin
from baton.client.errors import BatonError, InvalidRequest

Change = typer.Option(metavar="+N|-N", help="Change in the number of workers, such as +1 or -1.")


def scale(
    prefill: Annotated[str | None, Change] = None,
    decode: Annotated[str | None, Change] = None,
    mixed: Annotated[str | None, Change] = None,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Add workers, or drain and stop some. Workers are added before others are stopped.

    Examples:

        baton scale --prefill +1

        baton scale --prefill +1 --decode -1
    """
    given = {"prefill": prefill, "decode": decode, "mixed": mixed}
    changes = {pool: _change(pool, text) for pool, text in given.items() if text is not None}
    if not changes:
        raise InvalidRequest("Give a pool and a change, such as `baton scale --prefill +1`.")
    from baton.deploy.scale import scale as scale_pool

    done: dict[str, list[str]] = {}
    with open_admin(admin) as client:

        def drain(workers: list[str]) -> None:
            _drain(client, workers)

        with StartProgress(err) as progress:
            for pool, change in sorted(changes.items(), key=lambda item: -item[1]):
                pools = {one.role: [worker.name for worker in one.workers] for one in client.cluster().pools}
                done[pool] = scale_pool(pool, change, pools, drain, progress)
    if as_json:
        print_document({pool: {"started" if changes[pool] > 0 else "ended": names} for pool, names in done.items()})
        return
    for pool, names in done.items():
        out.print(f"{'Started' if changes[pool] > 0 else 'Ended'} {', '.join(names)}.")


def _change(pool: str, text: str) -> int:
    """The change in an option as a number; raises `InvalidRequest` for any other text."""
    if not re.fullmatch(r"[+-]\d{1,4}", text) or int(text) == 0:
        raise InvalidRequest(f"--{pool} takes a change such as +1 or -1, not {text!r}.")
    return int(text)


def _drain(admin: Admin, workers: list[str]) -> None:
    """Drain workers and wait for the end; raises `BatonError` if the operation is not done."""
    operation = follow(admin, admin.drain(*workers), quiet=True)
    if operation.state != "done":
        raise BatonError(operation.message or f"{operation.title}: {operation.state}.")
