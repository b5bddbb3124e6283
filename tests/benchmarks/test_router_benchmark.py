"""Parts of `benchmarks.router` over real sockets; test_every_benchmark_runs.py runs all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.mock_http import about, mock_http_process
from benchmarks.open_loop import OpenSetting, play
from benchmarks.router_peers import PEERS, Peer, find_peer, peer_side
from benchmarks.router_sides import Child, start
from benchmarks.stream_clients import PROMPT, CompletionClient, HttpClient, Refused, drain


def test_a_peer_that_is_not_installed_is_found_missing_and_a_python_that_does_not_exist_is_refused() -> None:
    missing = Peer("other", "other-router", "no_such_router")
    assert find_peer(missing, None) is None
    assert find_peer(missing, sys.executable) is None
    with pytest.raises(SystemExit, match="--other: /no/python is not a program"):
        find_peer(missing, "/no/python")


def test_a_peer_that_ends_at_once_is_reported_with_its_code() -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with (
        pytest.raises(RuntimeError, match=r"sglang-router ended at once with code 3\."),
        peer_side(PEERS[0], command),
    ):
        raise AssertionError("it cannot have started")


def test_the_help_says_how_the_peers_are_installed() -> None:
    command = [sys.executable, "-m", "benchmarks.router", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'pip install "baton[benchmarks]"' in output
    assert "--smg PYTHON" in output


def test_the_mock_server_presents_itself_as_sglang_with_its_role_and_load() -> None:
    models, info, loads = (about(path, True, 3) for path in ("/v1/models", "/server_info", "/v1/loads?include=core"))
    assert models is not None and models["data"][0]["owned_by"] == "sglang"
    assert info is not None and info["disaggregation_mode"] == "decode"
    assert loads is not None and loads["loads"][0]["num_running_reqs"] == 3
    assert about("/version", True, 0) is None  # vLLM's
    json.dumps([models, info, loads])


@contextmanager
def _mock_servers() -> Iterator[tuple[Child, int]]:
    """The mock HTTP servers in a process, and the port of the public one."""
    with ExitStack() as stack:
        servers = start(stack, mock_http_process)
        _, port = servers.receive()
        yield servers, port


def test_latency_of_the_open_loop_counts_from_the_intended_arrival() -> None:
    class Held:
        """A client that sends nothing for a while, as a busy client does."""

        def __init__(self, port: int) -> None:
            self.client = HttpClient(port, 0, True)
            self.held: list[tuple[str, int, int]] = []
            self.reads = 0
            self.messages = 0

        def start(self, name: str, tokens: int, prompt: int = PROMPT) -> None:
            if "warm" in name:
                self.client.start(name, tokens, prompt)
            else:
                self.held.append((name, tokens, prompt))

        def read(self, timeout_s: float) -> list[str]:
            if len(self.held) == 5:
                self.reads += 1
            if self.reads == 3:
                for stream in self.held:
                    self.client.start(*stream)
                self.held.clear()
            return self.client.read(0.05)

        def tokens(self):  # type: ignore[no-untyped-def]
            return self.client.tokens()

        def close(self) -> None:
            self.client.close()

    setting = OpenSetting(1, 0.1, 4, 0.005, 50.0, (), 1, 0.1, 1, False)
    with _mock_servers() as (servers, port):
        prompt = play(HttpClient(port, 0, True), servers, 50.0, 0.1, setting, "prompt")
        held = play(Held(port), servers, 50.0, 0.1, setting, "held")
    assert prompt.missing == held.missing == 0
    assert len(held.ttft_s) == 5
    assert min(held.ttft_s) >= 0.1  # two reads of 50 ms passed before the last of them was sent
    assert min(prompt.ttft_s) < 0.1


def test_a_server_that_answers_with_an_error_is_reported_with_its_answer() -> None:
    with _mock_servers() as (_, port):
        client = HttpClient(port, 1, False)
        client.start("good", 3)
        drain(client, 1)
        client._idle[0].sendall(b"GET /version HTTP/1.1\r\n\r\n")
        client._tails[client._idle[0]] = b""  # as at the start of a request
        with pytest.raises(Refused, match="404 Not Found"):
            drain(client, 1)
        client.close()


def test_streams_that_do_not_end_are_reported_with_their_number() -> None:
    with _mock_servers() as (servers, port):
        servers.pace(60.0)
        client = HttpClient(port, 1, False)
        client.start("slow", 3)
        with pytest.raises(RuntimeError, match=r"1 of 1 streams have not ended within 0\.2 s"):
            drain(client, 1, within_s=0.2)
        client.close()


def test_paced_servers_keep_their_step_time_on_average() -> None:
    with _mock_servers() as (servers, port):
        servers.pace(0.005)
        client = HttpClient(port, 50, True)
        for index in range(50):
            client.start(f"{index}", 201)
        drain(client, 50)
        left = servers.pace(0.0)
        client.close()
    assert left["0", 200] - left["0", 0] == pytest.approx(1.0, abs=0.04)  # late wake-ups do not add up


def test_an_event_of_a_completion_has_as_many_tokens_as_characters() -> None:
    client = CompletionClient(0, 0, False)
    event = b'data: {"id":"cmpl-r","choices":[{"index":0,"text":%b,"logprobs":null}],"usage":null}'
    assert client.tokens_of(event % b'"a"') == ("r", range(1))
    assert client.tokens_of(event % rb'"\"\\]"') == ("r", range(1, 4))
    assert client.tokens_of(event % b'""') == ("r", range(4, 4))
    assert client.tokens_of(b"data: [DONE]") is None
