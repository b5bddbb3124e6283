"""The `baton` command: its subcommands, exit codes and error messages."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from baton.cli.admin_options import Json, err, out, print_document
from baton.cli.bench import bench
from baton.cli.chat import chat
from baton.cli.doctor import doctor
from baton.cli.generate import generate
from baton.cli.pools import cancel, drain, migrate, operations, rebalance, undrain
from baton.cli.report import print_settings
from baton.cli.scale import scale
from baton.cli.simulate import plan, simulate
from baton.cli.status import explain, policy, pools, status
from baton.cli.token import token
from baton.client.errors import BatonError

if TYPE_CHECKING:
    from baton.config.schema import BatonConfig

app = typer.Typer(no_args_is_help=True, add_completion=True, rich_markup_mode="rich", pretty_exceptions_enable=False)

Model = Annotated[str | None, typer.Option(help="Checkpoint folder or Hugging Face hub id. Default: built-in model.")]
Prefill = Annotated[int | None, typer.Option(help="Number of prefill workers.")]
Decode = Annotated[int | None, typer.Option(help="Number of decode workers.")]
Mixed = Annotated[int | None, typer.Option(help="Number of workers that serve whole requests (prefill and decode).")]
TensorParallel = Annotated[
    int | None, typer.Option(metavar="N", help="Ranks of each worker: processes that compute every step together.")
]
ChatTemplate = Annotated[str | None, typer.Option(metavar="FILE", help="Chat template. Default: the model's own.")]
LogLevel = Annotated[
    str | None, typer.Option(help="Log level of router, gateways and workers: debug, info, warning or error.")
]
LogFormat = Annotated[str | None, typer.Option(help="Format of their log lines: text or json.")]
AccessLog = Annotated[bool, typer.Option("--access-log", help="Log a line per ended request at its gateway.")]
OtlpEndpoint = Annotated[str | None, typer.Option(metavar="URL", help="Collector of traces (OTLP over HTTP).")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; options override it.", dir_okay=False)]


class Ended(BaseException):
    """A signal that ends the process. It unwinds the stack, so that started processes are stopped."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> None:
    """Run the command; an error is one sentence on stderr and exit code 1."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr] # A terminal may lack a character
    sys.exit(run(app))


def _end(number: int, frame: Any) -> None:
    raise Ended(number)


def run(command: Callable[[], Any]) -> int:
    """Run a command; returns its exit code: 0, 1 for an error, or 128 + the signal's number (130 for Ctrl-C)."""
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except BatonError as error:
        return _fail(error.message)
    except ModuleNotFoundError as error:
        if (error.name or "baton").startswith("baton"):
            raise
        return _fail(f"This command needs the package {error.name}: run pip install '.[node]' in Baton's checkout.")
    except BrokenPipeError:  # The reader has closed the pipe, as in `baton status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error}.")
    except UnicodeError as error:
        return _fail(f"A text cannot be encoded or decoded: {error}.")
    except KeyboardInterrupt:
        err.print("interrupted")
        return 128 + signal.SIGINT
    except Ended as end:
        return 128 + end.number
    except SystemError as error:  # Ray's waiting calls raise it from what a signal's handler raised in them
        if not isinstance(error.__cause__, Ended):
            raise
        return 128 + error.__cause__.number
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _fail(sentence: str) -> int:
    err.print(f"[red]error:[/] {escape(sentence)}", soft_wrap=True)
    return 1


@app.command()
def up(
    model: Model = None,
    prefill: Prefill = None,
    decode: Decode = None,
    mixed: Mixed = None,
    tensor_parallel: TensorParallel = None,
    config: ConfigFile = None,
    port: Annotated[int | None, typer.Option(help="Port for requests; 0: any free port.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port for the OpenAI API; 0: any free port.")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port for administration; 0: any free port.")] = None,
    admin_http_port: Annotated[
        int | None, typer.Option(help="Port for the page and metrics of the cluster; 0: any free port.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Placement policy. Default: predicted_latency.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Number format: float32, bfloat16, float16 or auto.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Device of workers: cpu, cuda or auto (a GPU if the pool's placement has GPUs).")
    ] = None,
    chat_template: ChatTemplate = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    access_log: AccessLog = False,
    otlp_endpoint: OtlpEndpoint = None,
    auto: Annotated[bool, typer.Option("--auto", help="Let the planner move workers between the pools.")] = False,
    as_json: Json = False,
) -> None:
    """Start a cluster on this machine, or on the Ray cluster at $RAY_ADDRESS.

    Examples:

        baton up

        baton up --model Qwen/Qwen2.5-0.5B --prefill 1 --decode 2

        baton up --tensor-parallel 2 --prefill 1 --decode 1

        baton up --config cluster.toml --policy round_robin

        baton up --prefill 2 --decode 2 --auto

        baton up --log-level debug --log-format json --access-log
    """
    from baton.config.parse import parse_config

    overrides: dict[str, dict[str, Any]] = {
        "model": {"path": model, "dtype": dtype, "chat_template": chat_template},
        "pools": {"prefill": prefill, "decode": decode, "mixed": mixed},
        "tensor_parallel": dict.fromkeys(("prefill", "decode", "mixed"), tensor_parallel),
        "engine": {"device": device},
        "gateway": {"port": port, "http_port": http_port},
        "router": {
            "admin_port": admin_port,
            "admin_http_port": admin_http_port,
            "policy": policy,
            "auto_rebalance": auto or None,
        },
        "logging": {"level": log_level, "format": log_format, "access": access_log or None},
        "tracing": {"endpoint": otlp_endpoint},
    }
    _start(parse_config(_read(config), overrides), as_json)


def _start(parsed: BatonConfig, as_json: bool) -> None:
    """Start the configured cluster and print where it serves."""
    from baton.cli.progress import StartProgress
    from baton.deploy.cluster import resolve_here
    from baton.deploy.cluster import up as start
    from baton.deploy.ending import clear
    from baton.deploy.running import home

    # First, because the processes of a dead cluster still use memory.
    clear(home(), lambda process, stage: err.print(f"{process}: {stage}", markup=False, soft_wrap=True))
    resolved = resolve_here(parsed)
    print_settings(err, resolved.settings)
    with StartProgress(err) as progress:
        cluster = start(resolved, progress)
    if as_json:
        print_document(asdict(cluster))
        return
    prompt = "write : the old fox" if not parsed.model.path else "Hello"
    out.print(f'Serving on {cluster.address}{cluster.http_words}. Try:  baton generate "{prompt}"', markup=False)
    if cluster.page_url:
        out.print(f"The cluster in a browser: {cluster.page_url}", markup=False)


@app.command()
def down(as_json: Json = False) -> None:
    """Stop the cluster that `baton up` started, and its Ray processes.

    Examples:

        baton down

        baton down --json
    """
    from baton.deploy.ending import down as stop

    with err.status("Stopping the cluster"):
        ended = stop()
    if as_json:
        print_document({"ended": ended.actors, "processes": ended.processes, "died": ended.died})
        return
    out.print(ended.sentence, soft_wrap=True)


@app.command()
def demo(model: Model = None, tensor_parallel: TensorParallel = None, as_json: Json = False) -> None:
    """Start a cluster, send a prompt twice, show its route through the cluster, and stop everything.

    Examples:

        baton demo

        baton demo --tensor-parallel 2 --json
    """
    from baton.cli.demo import run_demo

    answers = run_demo(err if as_json else out, err, model, tensor_parallel)
    if as_json:
        print_document({"answers": [answer.as_dict() for answer in answers]})


for command in (
    generate,
    chat,
    status,
    pools,
    explain,
    policy,
    rebalance,
    drain,
    undrain,
    migrate,
    scale,
    operations,
    cancel,
    bench,
):
    app.command()(command)
app.command()(simulate)
app.command()(plan)
app.add_typer(token, name="token")
app.add_typer(doctor, name="doctor")


def _read(config: Path | None) -> str:
    if config is None:
        return ""
    try:
        return config.read_text()
    except (OSError, UnicodeDecodeError) as error:
        from baton.client.errors import ConfigError

        raise ConfigError(f"{config} cannot be read: {error}.") from None


if __name__ == "__main__":
    main()
