"""`baton bench`: guidellm drives the cluster's OpenAI API, and the router's counts stand beside its figures."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from baton.cli.admin_options import AdminAddress, Json, open_admin, out, print_document
from baton.client.admin import Admin
from baton.client.errors import BatonError, InvalidRequest

COUNTS = ("finished_requests", "failed_requests", "refused_requests", "cancelled_requests")


def bench(
    streams: Annotated[str, typer.Option(help="Concurrent streams of each run, separated by commas.")] = "1,4,16",
    seconds: Annotated[float, typer.Option(min=1, help="Length of each run.")] = 10.0,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
    admin: AdminAddress = None,
    as_json: Json = False,
) -> None:
    """Measure the cluster that `baton up` started here with guidellm, which has to be installed.

    Examples:

        baton bench

        baton bench --streams 1,8,64 --seconds 30 --json
    """
    program = shutil.which("guidellm")
    if program is None:
        raise InvalidRequest("baton bench drives guidellm, which is not installed: run pip install guidellm.")
    numbers = _numbers(streams)
    target, tokenizer = _target()
    data = {"kind": "synthetic_text", "prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    with open_admin(admin) as client, tempfile.TemporaryDirectory() as folder:
        before = _counts(client)
        report = Path(folder) / "report.json"
        arguments: dict[str, dict[str, Any]] = {
            "backend": {"kind": "openai_http", "target": target, "request_format": "/v1/completions"},
            "tokenizer": {"kind": "huggingface_auto", "model": tokenizer},
            "data": data,
            "profile": {"kind": "concurrent", "streams": numbers},
            "constraint": {"kind": "max_duration", "seconds": seconds},
            "output": {"kind": "json", "path": str(report)},
        }
        options = [word for name, value in arguments.items() for word in (f"--{name}", json.dumps(value))]
        done = subprocess.run([program, "run", *options, "--disable-console"], capture_output=True, text=True)
        if done.returncode != 0 or not report.exists():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise BatonError(f"guidellm ended with code {done.returncode}: {''.join(last)}")
        runs = rows(json.loads(report.read_text()))
        counts = {name: count - before[name] for name, count in _counts(client).items()}
    if as_json:
        print_document({"runs": runs, "router": counts})
        return
    for line in markdown(runs):
        out.print(line, markup=False, soft_wrap=True)
    out.print("router: " + ", ".join(f"{count} {name.split('_')[0]}" for name, count in counts.items()))


def _numbers(streams: str) -> list[int]:
    """Raises `InvalidRequest` for anything but positive numbers."""
    words = streams.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise InvalidRequest(f"--streams takes numbers such as 1,4,16, not {streams!r}.")
    return [int(word) for word in words]


def _target() -> tuple[str, str]:
    """The URL of the noted cluster's API, and its checkpoint; raises `InvalidRequest` without either."""
    from baton.deploy.look import serving_cluster

    cluster = serving_cluster(clients=True)
    if cluster is None or not cluster.http_address:
        raise InvalidRequest("baton bench needs a cluster with HTTP (gateway.http_port): run baton up.")
    return f"{cluster.scheme}://{cluster.http_address}", cluster.resolved["model"]["path"]


def _counts(admin: Admin) -> dict[str, int]:
    cluster = admin.cluster()
    return {name: getattr(cluster, name) for name in COUNTS}


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of each run in guidellm's report."""
    found = []
    for run in report["benchmarks"]:
        metrics, totals = run["metrics"], run["metrics"]["request_totals"]
        ttft = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
        gap = metrics["inter_token_latency_ms"]["successful"]["percentiles"]
        found.append(
            {
                "streams": run["config"]["strategy"]["streams"],
                "requests": totals["successful"],
                "errors": totals["errored"],
                "output_tokens_per_s": metrics["output_tokens_per_second"]["successful"]["mean"],
                "ttft_p50_ms": ttft["p50"],
                "ttft_p99_ms": ttft["p99"],
                "gap_p50_ms": gap["p50"],
                "gap_p99_ms": gap["p99"],
            }
        )
    return found


def markdown(runs: list[dict[str, Any]]) -> list[str]:
    """The runs as lines of a table."""
    titles = list(runs[0]) if runs else []
    cells = [[f"{value:.1f}" if type(value) is float else str(value) for value in run.values()] for run in runs]
    return ["| " + " | ".join(line) + " |" for line in (titles, ["---"] * len(titles), *cells)]
