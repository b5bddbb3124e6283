"""The commands of the README, as a user types them; whatever happens, nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
# A job in the background of a script is started with Ctrl-C ignored; a terminal's is not.
CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
BATON = [sys.executable, "-c", f"{CTRL_C}; from baton.cli import main; main()"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "BATON_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def _baton(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BATON, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def _left_behind(folders_before: set[str]) -> list[str]:
    """Processes of a Ray that was started since."""
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    new = {str(path) for path in Path("/tmp").glob("baton-ray-*")} - folders_before
    return [command for command in commands if any(folder in command for folder in new)] + sorted(new)


@pytest.fixture
def rays_before() -> set[str]:
    return {str(path) for path in Path("/tmp").glob("baton-ray-*")}


@pytest.mark.slow
def test_up_status_generate_down(environment: dict[str, str], rays_before: set[str]) -> None:
    up = _baton(environment, "up", "--port", "0", "--admin-port", "0")
    try:
        assert up.returncode == 0, up.stderr
        assert "decode-0" in up.stderr
        assert "Serving on" in up.stdout
        again = _baton(environment, "up")
        assert again.returncode == 1
        assert "baton down" in again.stderr
        status = _baton(environment, "status")
        assert "prefill-0" in status.stdout
        assert "serving" in _baton(environment, "pools").stdout
        cluster = json.loads(_baton(environment, "status", "--json").stdout)
        assert [pool["role"] for pool in cluster["pools"]] == ["prefill", "decode"]
        answer = json.loads(_baton(environment, "generate", "Hello", "--max-tokens", "8", "--json").stdout)
        explained = _baton(environment, "explain", answer["request_id"])
        assert answer["prefill_worker"] in explained.stdout
        assert "finished" in explained.stdout
        assert "predicted TTFT" in explained.stdout
        explanation = json.loads(_baton(environment, "explain", answer["request_id"], "--json").stdout)
        assert explanation["output_tokens"] == answer["output_tokens"]
        unknown = _baton(environment, "explain", "nobody")
        assert unknown.returncode == 1
        assert "'nobody'" in unknown.stderr
        assert answer["prefill_worker"] == "prefill-0"
        assert answer["output_tokens"] <= 8
        streamed = _baton(environment, "generate", "Hello", "--max-tokens", "8")
        assert streamed.stdout.rstrip("\n") == answer["text"]
        assert "TTFT" in streamed.stderr
        refused = _baton(environment, "generate", "Hello", "--temperature", "-1")
        assert refused.returncode == 1
        assert "temperature" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        down = _baton(environment, "down")
    assert down.returncode == 0, down.stderr
    assert json.loads(_baton(environment, "down", "--json").stdout) == {"ended": []}
    assert "Nothing was running" in _baton(environment, "down").stdout
    assert _left_behind(rays_before) == []


@pytest.mark.slow
def test_the_demo_shows_the_way_and_the_prefix_hit(environment: dict[str, str], rays_before: set[str]) -> None:
    demo = _baton(environment, "demo")
    assert demo.returncode == 0, demo.stderr
    assert "prefill-0 → decode-0" in demo.stdout
    assert "The answer is right." in demo.stdout
    assert "88 pages, " in demo.stdout
    # Asked again it goes where its prefix is: on either worker, and at most the last page travels.
    assert "1392 from the prefix cache" in demo.stdout
    assert _left_behind(rays_before) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "number", "code"),
    [("ray", signal.SIGINT, 130), ("prefill-0", signal.SIGINT, 130), ("router", signal.SIGTERM, 143)],
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
        if f" {line} " in text:
            break
    process.send_signal(number)
    process.stderr.read()
    assert process.wait(timeout=60) == code
    deadline = time.monotonic() + 10
    while _left_behind(rays_before):
        assert time.monotonic() < deadline, _left_behind(rays_before)
        time.sleep(0.1)
    assert not (Path(environment["BATON_HOME"]) / "cluster.json").exists()


def test_mistakes_are_one_sentence(environment: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text("[pools]\nprefil = 1\n")
    wrong_key = _baton(environment, "up", "--config", str(config))
    no_model = _baton(environment, "up", "--model", "/no/such/model")
    no_policy = _baton(environment, "up", "--policy", "best")
    nobody = _baton(environment, "status", "--admin", "127.0.0.1:9")
    mistakes = ((wrong_key, "[pools]"), (no_model, "no folder"), (no_policy, "round_robin"), (nobody, "baton up"))
    for done, word in mistakes:
        assert done.returncode == 1
        assert word in done.stderr
        assert "Traceback" not in done.stderr
