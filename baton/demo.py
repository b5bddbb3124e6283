"""`baton demo`: one prompt, twice, through a cluster that lives as long as the command."""

from __future__ import annotations

from rich.console import Console

from baton.client import Client
from baton.progress import StartProgress
from baton.report import print_answer
from cluster.config import parse_config

PROMPT = (
    "A relay race is won in the exchange zone. The runner who comes in does not stop, the runner who goes out does "
    "not wait: for a few steps both hold the same baton at full speed. "
) * 3 + "So the first rule is"


def run_demo(out: Console, err: Console, model: str | None) -> None:
    """Start router, prefill worker and decode worker, ask twice, and end every process again, whatever happens."""
    from deploy.cluster import down, resolve_here, up

    config = parse_config("", {"model": {"path": model}, "router": {"port": 0}})
    resolved = resolve_here(config)
    try:
        with StartProgress(err) as progress:
            cluster = up(resolved, progress)
        with Client(cluster.address) as client:
            out.rule("The prompt, for the first time")
            _ask(out, client)
            out.rule("The same prompt again: its prefix is cached on both workers")
            _ask(out, client)
        if model is None:
            out.print(
                "\n[dim]The built-in model has random weights: its words are noise, the way they took is real.[/]"
            )
    finally:
        with err.status("Shutting everything down"):
            down()
    out.print("Everything is shut down.")


def _ask(out: Console, client: Client) -> None:
    out.print(f"[dim]{PROMPT}[/]", soft_wrap=True)
    stream = client.stream(PROMPT, max_tokens=48, temperature=0.0, ignore_eos=True)
    for token in stream:
        out.out(token.text, end="", highlight=False)
    out.print()
    print_answer(out, stream.answer)
