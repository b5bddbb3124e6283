"""Ray starts dead processes again, and clients get every token: of workers, of the router, of a gateway."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private.worker import global_worker

import baton
from baton.deploy.launcher import stop_cluster
from baton.deploy.local_ray import LocalRay
from baton.protocol.v1 import admin_pb2
from tests.live.conftest import Live, start_live
from tests.reliability.ray_cluster import actor_pid, router_pid
from tests.waiting import until

pytestmark = pytest.mark.ray

OPTIONS: dict[str, Any] = {"max_tokens": 180, "ignore_eos": True, "temperature": 0.8, "seed": 5}
PROMPT = [7, 8, 9] * 12
GATEWAYS = ("gateway-0", "gateway-1")  # They share a port


@pytest.fixture(scope="module")
def restarted(ray_head: LocalRay, checkpoint: Path) -> Iterator[Live]:
    yield start_live(checkpoint, "again-", {"prefill": 1, "decode": 2, "gateways": 2}, policy="least_loaded")
    stop_cluster("again-")


def _gateways(live: Live) -> list[admin_pb2.GatewayStatus]:
    with live.admin() as admin:
        return list(admin.cluster().gateways)


def _workers(live: Live) -> dict[str, Any]:
    try:
        with live.admin() as admin:
            return {worker.name: worker for pool in admin.cluster().pools for worker in pool.workers}
    except baton.BatonError:
        return {}


def _decoding(live: Live, client: baton.Client) -> tuple[list[int], baton.TokenStream, Any]:
    """The tokens of an undisturbed answer, a stream of the same request that decodes, and its decode worker."""
    expected = client.generate(PROMPT, **OPTIONS).token_ids
    stream = client.stream(PROMPT, **OPTIONS)
    next(stream)
    busy: list[Any] = []

    def look() -> bool:
        busy[:] = [one for one in _workers(live).values() if one.name.startswith("decode") and one.pages_in_use]
        return bool(busy)

    until(look)  # Its report may be half a second old
    return expected, stream, busy[0]


@pytest.mark.slow
def test_no_stream_breaks_when_the_router_is_killed(restarted: Live) -> None:
    """Plain clients, which do not resume. Every token is that of an undisturbed run."""
    prompts = [[token] * 40 for token in (11, 12, 13, 14, 15, 16)]
    with restarted.client(give_up_s=0.0) as client:
        expected = [client.generate(prompt, **OPTIONS, logprobs=2) for prompt in prompts]
        streams = [client.stream(prompt, **OPTIONS, logprobs=2) for prompt in prompts]
        for stream in streams:
            for _ in range(3):
                next(stream)
        before = {worker.incarnation for worker in _workers(restarted).values()}
        os.kill(router_pid("again-"), signal.SIGKILL)
        with ThreadPoolExecutor(len(streams)) as pool:
            answers = list(pool.map(lambda stream: stream.answer, streams))
    for answer, undisturbed in zip(answers, expected, strict=True):
        assert answer.token_ids == undisturbed.token_ids
        assert [token.index for token in answer.tokens] == list(range(len(answer.tokens)))
        assert [token.logprob for token in answer.tokens] == pytest.approx(
            [token.logprob for token in undisturbed.tokens], abs=1e-3
        )
        assert answer.text == undisturbed.text
        assert answer.finish_reason == undisturbed.finish_reason
    # The workers kept their processes but have new incarnations, so that late orders for the old ones are ignored.
    until(lambda: len(_workers(restarted)) == 3, timeout_s=60)
    assert not before & {worker.incarnation for worker in _workers(restarted).values()}
    restarted.wait_idle()


@pytest.mark.slow
def test_a_request_waits_for_the_router_that_is_restarted(restarted: Live) -> None:
    with restarted.client(give_up_s=0.0) as client:
        expected = client.generate(PROMPT, **OPTIONS).token_ids
        os.kill(router_pid("again-"), signal.SIGKILL)
        assert client.generate(PROMPT, **OPTIONS).token_ids == expected
    until(lambda: len(_workers(restarted)) == 3, timeout_s=60)
    restarted.wait_idle()


@pytest.mark.slow
@pytest.mark.parametrize("actors", [GATEWAYS, ("router", *GATEWAYS)])
def test_clients_resume_when_the_gateways_are_killed_alone_or_with_the_router(
    restarted: Live, actors: tuple[str, ...]
) -> None:
    prompts = [[token] * 40 for token in (21, 22, 23)]
    with restarted.client() as client:
        expected = [client.generate(prompt, **OPTIONS) for prompt in prompts]
        streams = [client.stream(prompt, **OPTIONS) for prompt in prompts]
        for stream in streams:
            for _ in range(3):
                next(stream)
        killed = [actor_pid(f"again-{name}") for name in actors]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        with ThreadPoolExecutor(len(streams)) as pool:
            answers = list(pool.map(lambda stream: stream.answer, streams))
        for answer, undisturbed in zip(answers, expected, strict=True):
            assert (answer.token_ids, answer.text) == (undisturbed.token_ids, undisturbed.text)
            assert [token.index for token in answer.tokens] == list(range(len(answer.tokens)))
    until(lambda: len(_workers(restarted)) == 3 and len(_gateways(restarted)) == 2, timeout_s=60)
    assert not {gateway.pid for gateway in _gateways(restarted)} & set(killed)
    assert {gateway.public_address for gateway in _gateways(restarted)} == {restarted.address}
    restarted.wait_idle()


@pytest.mark.slow
def test_a_killed_worker_is_restarted_and_registers(restarted: Live) -> None:
    with restarted.client() as client:
        expected, stream, victim = _decoding(restarted, client)
        os.kill(victim.pid, signal.SIGKILL)
        assert stream.answer.token_ids == expected
        until(lambda: _workers(restarted).get(victim.name, victim).pid != victim.pid, timeout_s=60)
        assert client.generate(PROMPT, **OPTIONS).token_ids == expected
    until(lambda: len(_workers(restarted)) == 3, timeout_s=60)
    restarted.wait_idle()


@pytest.mark.slow
def test_a_stopped_worker_is_given_up_and_returns_with_a_new_incarnation(restarted: Live) -> None:
    with restarted.client() as client:
        expected, stream, victim = _decoding(restarted, client)
        os.kill(victim.pid, signal.SIGSTOP)
        try:
            assert stream.answer.token_ids == expected
            assert stream.answer.attempts == 2
        finally:
            os.kill(victim.pid, signal.SIGCONT)
        until(lambda: victim.name in _workers(restarted), timeout_s=60)
        back = _workers(restarted)[victim.name]
        assert back.incarnation != victim.incarnation
        assert client.generate(PROMPT, **OPTIONS).token_ids == expected
    restarted.wait_idle()


@pytest.mark.slow
def test_a_stopped_gateway_is_killed_and_another_process_takes_its_connections(restarted: Live) -> None:
    stopped = actor_pid("again-gateway-1")
    os.kill(stopped, signal.SIGSTOP)
    try:
        until(lambda: not psutil.pid_exists(stopped), timeout_s=90)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)
    until(lambda: len(_gateways(restarted)) == len(GATEWAYS), timeout_s=60)
    for _ in range(8):  # The kernel picks a gateway for each
        with restarted.client() as client:
            assert len(client.generate(PROMPT, max_tokens=2, ignore_eos=True).token_ids) == 2
    restarted.wait_idle()


@pytest.mark.slow
def test_a_router_whose_port_is_taken_when_ray_restarts_it_serves_once_the_port_is_free(restarted: Live) -> None:
    host, _, port = restarted.admin_address.rpartition(":")
    killed = router_pid("again-")
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(killed, signal.SIGKILL)
        until(lambda: _binds(holder, host, int(port)), timeout_s=10)
        holder.listen()
        until(lambda: "The router could not start: " in _router_log(killed), timeout_s=60)
        assert _router_log(killed).count("The router could not start: ") == 1
    until(lambda: len(_workers(restarted)) == 3, timeout_s=60)
    restarted.wait_idle()


def _binds(holder: socket.socket, host: str, port: int) -> bool:
    try:
        holder.bind((host, port))
    except OSError:
        return False
    return True


def _router_log(before: int) -> str:
    """The log of the router's process, once it is another one than `before`; else empty."""
    with contextlib.suppress(baton.BatonError):
        if (pid := router_pid("again-")) != before:
            folder = Path(global_worker.node.get_logs_dir_path())
            return "".join(path.read_text() for path in folder.glob(f"worker-*-{pid}.err"))
    return ""


@pytest.mark.slow
def test_a_stopped_router_gives_up_no_worker_when_it_continues(restarted: Live) -> None:
    """A stop shorter than the links' limit of 5 s: no connection breaks, no worker is lost, nothing is recomputed."""
    with restarted.client() as client:
        expected = client.generate(PROMPT, **OPTIONS).token_ids
        before = {worker.incarnation for worker in _workers(restarted).values()}
        stream = client.stream(PROMPT, **OPTIONS)
        next(stream)
        pid = router_pid("again-")
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: time.monotonic() > stopped + 3.0)  # longer than a worker may be silent
        os.kill(pid, signal.SIGCONT)
        assert stream.answer.token_ids == expected
        assert stream.answer.attempts <= 1  # 0: it ended before the router could report its route
    assert {worker.incarnation for worker in _workers(restarted).values()} == before
    restarted.wait_idle()


def test_the_same_request_sent_twice_is_one_request(restarted: Live) -> None:
    with restarted.client() as client, restarted.client() as other:
        first = client.stream(PROMPT, request_id="twice", **OPTIONS)
        head = [next(first) for _ in range(3)]
        second = other.stream(PROMPT, request_id="twice", **OPTIONS)
        answer = second.answer
        assert [token.id for token in head] == answer.token_ids[:3]
        assert [token.index for token in answer.tokens] == list(range(len(answer.tokens)))
        with pytest.raises(baton.Cancelled, match="taken over"):
            list(first)
        with pytest.raises(baton.InvalidRequest, match="in use"):
            running = client.stream(PROMPT, request_id="mine", **OPTIONS)
            next(running)
            other.generate([1, 2, 3], request_id="mine")
    restarted.wait_idle()


def test_a_plain_client_resumes_by_index(restarted: Live) -> None:
    from baton.client.answer import make_request

    with restarted.client() as client:
        whole = client.generate(PROMPT, **OPTIONS)
        for emitted in ([], whole.token_ids[:20]):
            request = make_request(PROMPT, OPTIONS, request_id=f"resumed-{len(emitted)}")
            request.resume_from = 20
            request.emitted.extend(emitted)
            tokens = [token for response in client._inference.Generate(request) for token in response.tokens]
            assert [token.index for token in tokens] == list(range(20, len(whole.tokens)))
            assert [token.id for token in tokens] == whole.token_ids[20:]
    restarted.wait_idle()


def test_taking_a_cluster_down_lets_its_streams_end(restarted: Live) -> None:
    with restarted.client() as client:
        expected = client.generate(PROMPT, **OPTIONS).token_ids
        stream = client.stream(PROMPT, **OPTIONS)
        next(stream)
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(stop_cluster, "again-")
            assert stream.answer.token_ids == expected
            assert "again-router" in ended.result()
