"""The commands of the README as a user types them; in every case no process and no folder is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import BATON
from tests.live.commands import ROOT, baton_command, left_behind
from tests.waiting import until

pytestmark = pytest.mark.ray


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "BATON_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


@pytest.fixture
def rays_before() -> set[str]:
    return {str(path) for path in Path("/tmp").glob("baton-ray-*")}


@pytest.mark.slow
def test_up_status_generate_down(environment: dict[str, str], rays_before: set[str]) -> None:
    up = baton_command(environment, "up", "--port", "0", "--admin-port", "0")
    try:
        assert up.returncode == 0, up.stderr
        assert "decode-0" in up.stderr
        assert "Serving on" in up.stdout and "in a browser: http://127.0.0.1:" in up.stdout
        again = baton_command(environment, "up")
        assert again.returncode == 1
        assert "baton down" in again.stderr
        demo = baton_command(environment, "demo")
        assert demo.returncode == 0, demo.stderr
        status = baton_command(environment, "status")
        assert "prefill-0" in status.stdout
        assert "gateway-0" in status.stdout
        assert "serving" in baton_command(environment, "pools").stdout
        cluster = json.loads(baton_command(environment, "status", "--json").stdout)
        assert [pool["role"] for pool in cluster["pools"]] == ["prefill", "decode"]
        answer = json.loads(baton_command(environment, "generate", "Hello", "--max-tokens", "8", "--json").stdout)
        explained = baton_command(environment, "explain", answer["request_id"])
        assert answer["prefill_worker"] in explained.stdout
        assert "finished" in explained.stdout
        assert "predicted TTFT" in explained.stdout
        explanation = json.loads(baton_command(environment, "explain", answer["request_id"], "--json").stdout)
        assert explanation["output_tokens"] == answer["output_tokens"]
        unknown = baton_command(environment, "explain", "no-such-request")
        assert unknown.returncode == 1
        assert "'no-such-request'" in unknown.stderr
        assert answer["prefill_worker"] == "prefill-0"
        assert answer["output_tokens"] <= 8
        streamed = baton_command(environment, "generate", "Hello", "--max-tokens", "8")
        assert streamed.stdout.rstrip("\n") == answer["text"]
        assert "TTFT" in streamed.stderr
        refused = baton_command(environment, "generate", "Hello", "--temperature", "-1")
        assert refused.returncode == 1
        assert "temperature" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        down = baton_command(environment, "down")
    assert down.returncode == 0, down.stderr
    assert "Ended 2 workers, 1 gateway and the router (" in down.stdout
    assert json.loads(baton_command(environment, "down", "--json").stdout)["ended"] == []
    assert "Nothing was running" in baton_command(environment, "down").stdout
    assert left_behind(rays_before) == []


@pytest.mark.slow
def test_the_demo_shows_the_route_and_the_prefix_hit(environment: dict[str, str], rays_before: set[str]) -> None:
    demo = baton_command(environment, "demo")
    assert demo.returncode == 0, demo.stderr
    assert "prefill-0 → decode-0" in demo.stdout
    assert "The answer is right." in demo.stdout
    assert "88 pages, " in demo.stdout
    # The repeated request goes to a worker with its prefix; at most the last page is transferred.
    assert "1392 from the prefix cache" in demo.stdout
    assert left_behind(rays_before) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "number", "code"),
    [
        ("ray          starting", signal.SIGINT, 130),
        ("ray          connecting", signal.SIGINT, 130),
        ("prefill-0    starting", signal.SIGINT, 130),
        ("router       starting", signal.SIGTERM, 143),
        ("gateway-0    starting", signal.SIGTERM, 143),
        ("prefill-0    starting", signal.SIGTERM, 143),
    ],
)
def test_an_interrupted_start_leaves_nothing(
    environment: dict[str, str], rays_before: set[str], line: str, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [*BATON, "up", "--port", "0", "--admin-port", "0"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for text in process.stderr:
        if line in text:
            break
    process.send_signal(number)
    errors = process.stderr.read()
    assert process.wait(timeout=60) == code, errors
    assert "Traceback" not in errors
    until(lambda: not left_behind(rays_before), timeout_s=10)
    assert not (Path(environment["BATON_HOME"]) / "cluster.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["ray          starting", "router       starting", "gateway-0    starting", "prefill-0    starting"]
)
def test_leftovers_of_a_killed_start_are_ended_by_the_next_down(
    environment: dict[str, str], rays_before: set[str], words: str
) -> None:
    with _starting(environment, words) as process:
        process.kill()
    down = baton_command(environment, "down")
    assert down.returncode == 0, down.stderr
    assert "was killed" in down.stdout
    assert left_behind(rays_before) == []
    assert not (Path(environment["BATON_HOME"]) / "cluster.json").exists()


@pytest.mark.slow
def test_a_start_in_progress_refuses_another_one_and_is_ended_by_down(
    environment: dict[str, str], rays_before: set[str]
) -> None:
    with _starting(environment, "ray          starting") as process:
        second = baton_command(environment, "up", "--port", "0", "--admin-port", "0")
        assert second.returncode == 1
        assert f"being started by baton up (process {process.pid})" in second.stderr
        down = baton_command(environment, "down")
        assert down.returncode == 0, down.stderr
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert left_behind(rays_before) == []
    assert "Nothing was running" in baton_command(environment, "down").stdout


@contextlib.contextmanager
def _starting(environment: dict[str, str], words: str) -> Iterator[subprocess.Popen[str]]:
    """A `baton up` that has just printed this progress."""
    command = [*BATON, "up", "--port", "0", "--admin-port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any(words in line for line in process.stderr), "it never came so far"
            yield process
        finally:
            process.kill()


def test_mistakes_are_reported_in_one_sentence(environment: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text("[pools]\nprefil = 1\n")
    wrong_key = baton_command(environment, "up", "--config", str(config))
    no_model = baton_command(environment, "up", "--model", "/no/such/model")
    no_policy = baton_command(environment, "up", "--policy", "best")
    no_router = baton_command(environment, "status", "--admin", "127.0.0.1:9")
    mistakes = (
        (wrong_key, "[pools]"),
        (no_model, "not exist"),
        (no_policy, "round_robin"),
        (no_router, "baton up"),
    )
    for done, word in mistakes:
        assert done.returncode == 1
        assert word in done.stderr
        assert "Traceback" not in done.stderr
