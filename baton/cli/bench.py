"""`baton bench`: guidellm drives the cluster's OpenAI API, and the router's figures stand beside its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from baton.cli.admin_options import AdminAddress, Json, open_admin, out, print_document
from baton.cli.bench_report import counts, guidellm_figures, markdown, plot, prepare_plot, router_figures
from baton.client.admin import Admin
from baton.client.errors import BatonError, InvalidRequest


def bench(
    streams: Annotated[str, typer.Option(help="Concurrent streams of each run, separated by commas.")] = "1,4,16",
    seconds: Annotated[float, typer.Option(min=1, help="Length of each run.")] = 10.0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    token: Annotated[
        str | None, typer.Option(envvar="BATON_TOKEN", help="Token with the roles generate and admin.")
    ] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the runs.")] = None,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Measure the cluster that `baton up` started here with guidellm, which has to be installed.

    Examples:

        baton bench

        baton bench --streams 1,8,64 --seconds 30 --json --plot bench.png
    """
    program = shutil.which("guidellm")
    if program is None:
        raise InvalidRequest("baton bench drives guidellm, which is not installed: run pip install guidellm.")
    numbers = _numbers(streams)
    if plot_file is not None:
        prepare_plot()
    backend, tokenizer = _target(token)
    arguments: dict[str, dict[str, Any]] = {
        "backend": backend,
        "tokenizer": {"kind": "huggingface_auto", "model": tokenizer},
        "data": {"kind": "synthetic_text", "prompt_tokens": prompt_tokens, "output_tokens": output_tokens},
        "constraint": {"kind": "max_duration", "seconds": seconds},
    }
    if token:
        os.environ["BATON_TOKEN"] = token  # Where the admin client looks for it
    with open_admin(admin) as client:
        runs = list(_runs(program, arguments, numbers, client))
    if plot_file is not None:
        plot(runs, plot_file)
    if as_json:
        print_document({"runs": runs})
        return
    for line in markdown(runs):
        out.print(line, markup=False, soft_wrap=True)


def _runs(
    program: str, arguments: dict[str, dict[str, Any]], numbers: list[int], admin: Admin
) -> Iterator[dict[str, Any]]:
    """The figures of a run for each number of streams: guidellm's, and what the router counted in the time."""
    for number in numbers:
        before = counts(admin.cluster())
        report = _guidellm(program, {**arguments, "profile": {"kind": "concurrent", "streams": [number]}})
        yield {**guidellm_figures(report), **router_figures(before, counts(admin.cluster()))}


def _guidellm(program: str, arguments: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The report of one run; raises `BatonError` with guidellm's last line if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = {**arguments, "output": {"kind": "json", "path": str(report)}}
        words = [word for name, value in options.items() for word in (f"--{name}", json.dumps(value))]
        done = subprocess.run([program, "run", *words, "--disable-console"], capture_output=True, text=True)
        if done.returncode != 0 or not report.exists():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise BatonError(f"guidellm ended with code {done.returncode}: {''.join(last)}")
        found: dict[str, Any] = json.loads(report.read_text())
        return found


def _numbers(streams: str) -> list[int]:
    """Raises `InvalidRequest` for anything but positive numbers."""
    words = streams.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise InvalidRequest(f"--streams takes numbers such as 1,4,16, not {streams!r}.")
    return [int(word) for word in words]


def _target(token: str | None) -> tuple[dict[str, Any], str]:
    """guidellm's backend for the noted cluster's API, and its checkpoint; raises `InvalidRequest` without either."""
    from baton.deploy.look import serving_cluster

    cluster = serving_cluster(clients=True)
    if cluster is None or not cluster.http_address:
        raise InvalidRequest("baton bench needs a cluster with HTTP (gateway.http_port): run baton up.")
    backend = {
        "kind": "openai_http",
        "target": f"{cluster.scheme}://{cluster.http_address}",
        "request_format": "/v1/completions",
    }
    return {**backend, **({"api_key": token} if token else {})}, cluster.resolved["model"]["path"]
