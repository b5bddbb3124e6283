"""`baton status`, `pools`, `explain` and `policy`: the state and the decisions of a running cluster."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.live import Live

from baton.cli.admin_options import (
    AdminAddress,
    Json,
    complete_policies,
    document,
    err,
    open_admin,
    out,
    print_document,
)
from baton.cli.cluster_report import cluster_screen, pool_summaries, pools_screen, status_lines
from baton.cli.report import print_explanation
from baton.cli.table import show
from baton.deploy.look import history
from baton.deploy.running import running_cluster
from baton.protocol.v1 import admin_pb2

WATCH_S = 1.0


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every second until Ctrl-C.")] = False,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Show the gateways, and the workers of each pool: state, load, predictions, and use of KV pages.

    Examples:

        baton status

        baton status --watch

        baton status --json

        baton status --watch --json | jq .queued_requests
    """
    with open_admin(admin) as client:
        cluster = client.cluster()
        if admin is None and not as_json and (notice := history()):
            err.print(f"{notice}.", soft_wrap=True)
        if not watch:
            print_document(document(cluster)) if as_json else show(out, cluster_screen(cluster))
            if admin is None and not as_json and (noted := running_cluster()) and noted.page_url:
                err.print(f"In a browser: {noted.page_url}", markup=False)
            return
        with _Screen(as_json) as screen:
            try:
                while True:
                    screen.show(cluster)
                    time.sleep(WATCH_S)
                    cluster = client.cluster()
            except KeyboardInterrupt:
                return


class _Screen:
    """A live screen on a terminal; elsewhere one document, or plain lines, per refresh."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        live = out.is_terminal and not as_json
        self._live = Live(console=out, screen=True, auto_refresh=False) if live else None

    def __enter__(self) -> _Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, cluster: admin_pb2.Cluster) -> None:
        if self._live:
            self._live.update(cluster_screen(cluster), refresh=True)
        elif self._as_json:
            print_document(document(cluster))
        else:
            print(*status_lines(cluster), sep="\n", flush=True)


def pools(admin: AdminAddress = None, as_json: Json = False) -> None:
    """Show the totals of each pool, and the planner's forecast and advice.

    Examples:

        baton pools

        baton pools --json
    """
    with open_admin(admin) as client:
        cluster = client.cluster()
    if as_json:
        print_document({"pools": pool_summaries(cluster), "planner": document(cluster.planner)})
    else:
        show(out, pools_screen(cluster))


def explain(
    request_id: Annotated[str, typer.Argument(help="Id of the request, as its client chose or received it.")],
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Show the routing decision of a request and its outcome. The router keeps the newest few thousand requests.

    Examples:

        baton explain my-request

        baton explain my-request --json
    """
    with open_admin(admin) as client:
        explanation = client.explain(request_id)
    if as_json:
        print_document(document(explanation))
    else:
        print_explanation(out, explanation)


def policy(
    name: Annotated[
        str | None,
        typer.Argument(help="Policy to switch to. Default: list the policies.", autocompletion=complete_policies),
    ] = None,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Show the placement policies, or switch to one. Running requests stay where they are.

    Examples:

        baton policy

        baton policy least_loaded
    """
    with open_admin(admin) as client:
        decides = client.policy(name)
    if as_json:
        print_document(document(decides))
        return
    if name is not None:
        err.print(f"The placement policy is now {decides.name}.")
        return
    for known in decides.known:
        out.print(f"[bold]{known}[/]  active" if known == decides.name else known)
