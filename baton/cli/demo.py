"""`baton demo`: a look-up over many pages, sent twice, and a sentence, on a temporary cluster."""

from __future__ import annotations

import random
import secrets
import shutil

from rich.console import Console

from baton.builtin_model.tasks import look_up
from baton.cli.progress import StartProgress
from baton.cli.report import print_answer
from baton.client.answer import Answer
from baton.client.client import Client
from baton.config.parse import parse_config

LINES = 200
SENTENCE = "write : the old fox"
TEXT = (
    "A relay race is won in the exchange zone. The runner who comes in does not stop, the runner who goes out does "
    "not wait: for a few steps both hold the same baton at full speed. "
) * 3 + "So the first rule is"


def run_demo(out: Console, err: Console, model: str | None, tensor_parallel: int | None = None) -> list[Answer]:
    """Start a cluster with a prefill and a decode worker, send prompts, and stop every process, also after an error.

    The cluster has its own folder, so another cluster on this machine is not affected. Returns the answers.
    """
    from baton.deploy.cluster import resolve_here, up
    from baton.deploy.ending import down, end_killed_demos
    from baton.deploy.processes import this_process
    from baton.deploy.running import home

    config = parse_config(
        "",
        {
            "model": {"path": model},
            "tensor_parallel": dict.fromkeys(("prefill", "decode", "mixed"), tensor_parallel),
            "gateway": {"port": 0, "http_port": 0},
            "router": {"admin_port": 0, "admin_http_port": 0},
        },
    )
    end_killed_demos(home())  # First, because their processes still use memory
    resolved = resolve_here(config)
    folder = home() / f"demo-{secrets.token_hex(4)}"
    try:
        with StartProgress(err) as progress:
            cluster = up(resolved, progress, folder, ends_with=this_process("baton demo"))
        with Client(cluster.address) as client:
            if model is None:
                answers = _look_up_and_write(out, client)
            else:
                titles = "A text", "The same again: its prefix is cached on both workers"
                answers = [_ask(out, client, title, TEXT) for title in titles]
    finally:
        with err.status("Shutting everything down"):
            down(folder)
            shutil.rmtree(folder, ignore_errors=True)
    out.print("Everything is shut down.")
    return answers


def _look_up_and_write(out: Console, client: Client) -> list[Answer]:
    """Prompts for the built-in model: one whose answer depends on every page, twice, and one in plain language."""
    task = look_up(random.Random(2026), LINES)
    first = _ask(out, client, f"A look-up: one line of {LINES}", task.prompt)
    verdict = "right" if first.text == task.answer else f"wrong: it is{task.answer}"
    out.print(f"The answer is {verdict}.")
    again = _ask(out, client, "The same again: its prefix is cached on both workers", task.prompt)
    return [first, again, _ask(out, client, "A sentence", SENTENCE)]


def _ask(out: Console, client: Client, title: str, prompt: str) -> Answer:
    out.rule(title)
    shown = prompt if len(prompt) < 700 else f"{prompt[:120]} … {prompt[-60:]}"
    out.print(f"[dim]{shown}[/]", soft_wrap=True, end="")
    stream = client.stream(prompt, max_tokens=48)
    for token in stream:
        out.out(token.text, end="", highlight=False)
    out.print()
    print_answer(out, stream.answer)
    return stream.answer
