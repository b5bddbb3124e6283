"""Text about one request: its route through the cluster, timings, and the routing decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from baton.cli.table import Column, fitting, show
from baton.protocol.v1 import admin_pb2

if TYPE_CHECKING:
    from baton.client.answer import Answer

CANDIDATE_COLUMNS = (
    Column("candidate"),
    Column("predicted TTFT", 1, right=True),
    Column("waiting", 3, right=True),
    Column("tokens to compute", 4, right=True),
    Column("predicted TPOT", 2, right=True),
)


def milliseconds(seconds: float | None) -> str:
    """A time as text; "-" for None."""
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def size(num_bytes: int) -> str:
    """A number of bytes as text."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def pages(number: int) -> str:
    """A number of KV pages, as in "1 page" and "88 pages"."""
    return f"{number} page{'' if number == 1 else 's'}"


def print_settings(console: Console, settings: dict[str, str]) -> None:
    """Print names and values, one pair per line."""
    table = Table.grid(padding=(0, 2))
    for name, value in settings.items():
        table.add_row(f"[dim]{name}[/]", escape(value))
    console.print(table)


def print_answer(console: Console, answer: Answer) -> None:
    """Print a request's route, tokens, latency and handoff."""
    table = Table.grid(padding=(0, 2))
    route = answer.prefill_worker
    if answer.decode_worker not in ("", answer.prefill_worker):
        route += f" → {answer.decode_worker}"
    if answer.migrations:
        route += f", migrated {answer.migrations} times"
    table.add_row("[dim]request[/]", f"{escape(answer.request_id)}; `baton explain` shows why it took this route")
    table.add_row("[dim]route[/]", route)
    table.add_row(
        "[dim]tokens[/]",
        f"{answer.prompt_tokens} prompt ({answer.cached_tokens} from the prefix cache), {answer.output_tokens} output, "
        f"ended by {answer.finish_reason}",
    )
    table.add_row("[dim]latency[/]", f"TTFT {milliseconds(answer.ttft_s)}, TPOT {milliseconds(answer.tpot_s)}")
    handoff = answer.handoff
    if handoff is not None:
        table.add_row(
            "[dim]handoff[/]",
            f"{pages(handoff.pages_sent)}, {size(handoff.bytes_sent)} in {milliseconds(handoff.transfer_s)}; "
            f"{pages(handoff.pages_cached)} already cached on the decode worker",
        )
    else:
        table.add_row("[dim]handoff[/]", "none: one worker computed prompt and output")
    console.print(table)


def print_explanation(console: Console, explanation: admin_pb2.Explanation) -> None:
    """Print a routing decision, the predictions, and the outcome."""
    route = explanation.prefill_worker
    if explanation.decode_worker not in ("", explanation.prefill_worker):
        route += f" → {explanation.decode_worker}"
    ttft_s = explanation.ttft_s if explanation.HasField("ttft_s") else None
    tpot_s = explanation.tpot_s if explanation.HasField("tpot_s") else None
    measured = f"queued {milliseconds(explanation.queue_s)}, TTFT {milliseconds(ttft_s)}, TPOT {milliseconds(tpot_s)}"
    if explanation.HasField("output_tokens"):
        measured += f", {explanation.output_tokens} output tokens"
    print_settings(
        console,
        {
            "request": explanation.request_id,
            "state": explanation.state,
            "route": route,
            "why": explanation.why,
            "policy": explanation.policy,
            "predicted": f"{explanation.output_tokens_p50:.0f} output tokens, with 90 % probability at most "
            f"{explanation.output_tokens_p90:.0f}",
            "measured": measured,
            **({"phases": _phases(explanation)} if explanation.phases else {}),
        },
    )
    if not explanation.candidates:
        console.print("The policy compared no candidates by predicted latency.")
        return
    rows = []
    for one in explanation.candidates:
        name = f"{one.worker} (whole request)" if one.local else one.worker
        times = milliseconds(one.ttft_s), milliseconds(one.wait_s)
        rows.append((name, *times, str(one.uncached_tokens), milliseconds(one.tpot_s)))
    show(console, fitting(CANDIDATE_COLUMNS, rows))


def _phases(explanation: admin_pb2.Explanation) -> str:
    """What the request did, and for how long."""
    return ", ".join(
        f"{one.name} {milliseconds(one.seconds)}{' so far' if one.running else ''}" for one in explanation.phases
    )
