"""Every wait of a client is bounded: the server may be gone, hang, or never return."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

import baton.client.connection
from baton.client.admin import Admin
from baton.client.client import AsyncClient, Client
from baton.client.errors import BatonError, Cancelled, DeadlineExceeded, NoWorkers, Overloaded
from baton.protocol.v1 import admin_pb2
from tests.client.fake_admin import FakeAdmin, operation
from tests.client.fake_admin import serving as serving_admin
from tests.client.fake_inference import FakeInference, breaks_after, dead_port, serving, silent_port, slow, tokens

AtToken = Callable[[int, Any], None]  # called with each token's id and the stream


def _sync(address: str, at_token: AtToken = lambda token_id, stream: None, **options: Any) -> list[int]:
    give_up_s = options.pop("give_up_s", 1.0)
    with Client(address, give_up_s=give_up_s) as client:
        stream = client.stream([1], **options)
        for token in stream:
            at_token(token.id, stream)
        return stream.answer.token_ids


def _async(address: str, at_token: AtToken = lambda token_id, stream: None, **options: Any) -> list[int]:
    give_up_s = options.pop("give_up_s", 1.0)

    async def run() -> list[int]:
        async with AsyncClient(address, give_up_s=give_up_s) as client:
            stream = client.stream([1], **options)
            async for token in stream:
                at_token(token.id, stream)
            return (await stream.answer()).token_ids

    return asyncio.run(run())


def _tokenize(address: str) -> list[int]:
    with Client(address) as client:
        return client.tokenize("text")


def _async_tokenize(address: str) -> list[int]:
    async def run() -> list[int]:
        async with AsyncClient(address) as client:
            return await client.tokenize("text")

    return asyncio.run(run())


def _admin(address: str) -> Any:
    with Admin(address) as admin:
        return admin.cluster()


def _watch(address: str) -> Any:
    with Admin(address) as admin:
        return list(admin.watch("op"))


CALLS = [_sync, _async, _tokenize, _async_tokenize, _admin, _watch]
STREAMS = [_sync, _async]


@pytest.fixture(autouse=True)
def _connecting_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    shorter = dict(baton.client.connection.OPTIONS) | {"grpc.min_reconnect_backoff_ms": 300}
    monkeypatch.setattr(baton.client.connection, "OPTIONS", list(shorter.items()))


def _failure(call: Callable[[], Any], within_s: float) -> BatonError:
    started = time.monotonic()
    with pytest.raises(BatonError) as caught:
        call()
    assert time.monotonic() - started < within_s
    return caught.value


@pytest.mark.parametrize("call", CALLS)
def test_a_port_where_nothing_listens_is_reported_at_once(call: Callable[[str], Any]) -> None:
    address = dead_port()
    error = _failure(lambda: call(address), within_s=3.0)
    assert isinstance(error, NoWorkers)
    assert f"No Baton answers at {address}" in error.message


@pytest.mark.parametrize("call", CALLS)
def test_a_port_that_accepts_and_never_answers_is_named_with_its_process(call: Callable[[str], Any]) -> None:
    with silent_port() as address:
        error = _failure(lambda: call(address), within_s=5.0)
    assert isinstance(error, NoWorkers)
    assert f"The server at {address} (pid {os.getpid()}) accepts connections and does not answer" in error.message


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("afterwards", ["nothing", "silence"])
def test_a_stream_whose_router_never_comes_back_is_given_up(stream: Callable[..., list[int]], afterwards: str) -> None:
    fake = FakeInference([slow(0.05, *range(100))])
    ended_s: list[float] = []
    with serving(fake) as (address, server), ExitStack() as port:

        def end_it(token_id: int, stream: object) -> None:
            if token_id == 2:
                server.stop(0).wait()
                if afterwards == "silence":
                    port.enter_context(silent_port(int(address.rpartition(":")[2])))
                ended_s.append(time.monotonic())

        error = _failure(lambda: stream(address, end_it), within_s=6.0)
        assert 0.9 <= time.monotonic() - ended_s[0] < 4.0
    assert isinstance(error, NoWorkers)
    assert f"The gateway at {address} has not answered for 1 s (tried " in error.message
    assert "after 3 output tokens" in error.message


@pytest.mark.parametrize("stream", STREAMS)
def test_a_router_that_answers_and_breaks_every_stream_is_given_up(stream: Callable[..., list[int]]) -> None:
    fake = FakeInference([breaks_after(7), breaks_after()])
    with serving(fake) as (address, _):
        error = _failure(lambda: stream(address), within_s=4.0)
    assert "for 1 s (tried " in error.message
    assert len(fake.asked) > 2
    assert list(fake.asked[-1].emitted) == [7]


@pytest.mark.parametrize("stream", STREAMS)
def test_a_resumed_stream_may_take_longer_than_it_takes_to_give_up(stream: Callable[..., list[int]]) -> None:
    fake = FakeInference([breaks_after(1, 2), slow(0.7, 3, 4, 5)])
    with serving(fake) as (address, _):
        assert stream(address, give_up_s=0.5) == [1, 2, 3, 4, 5]
    assert [request.resume_from for request in fake.asked] == [0, 2]


@pytest.mark.parametrize("stream", STREAMS)
def test_every_break_has_the_full_time_limit(stream: Callable[..., list[int]]) -> None:
    parts = [breaks_after(1), breaks_after(), breaks_after(2), breaks_after(), breaks_after(3), tokens(4)]
    fake = FakeInference(parts)
    with serving(fake) as (address, _):
        assert stream(address, give_up_s=0.5) == [1, 2, 3, 4]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("emitted", [(), (1, 2)])
def test_a_deadline_is_reported_in_batons_own_words(stream: Callable[..., list[int]], emitted: tuple[int, ...]) -> None:
    def then_nothing(fake: FakeInference, request: object, context: grpc.ServicerContext) -> Any:
        yield from emitted
        fake.over.wait(20)

    with serving(FakeInference([then_nothing])) as (address, _):
        error = _failure(lambda: stream(address, timeout_s=0.5), within_s=3.0)
    assert isinstance(error, DeadlineExceeded)
    how_far = "after 2 output tokens" if emitted else "before the first token"
    assert error.message == f"The deadline of 0.5 s has passed, {how_far}."


@pytest.mark.parametrize("stream", STREAMS)
def test_a_deadline_ends_the_attempts_to_reach_the_router_again(stream: Callable[..., list[int]]) -> None:
    fake = FakeInference([breaks_after(1), breaks_after()])
    with serving(fake) as (address, _):
        error = _failure(lambda: stream(address, timeout_s=0.8, give_up_s=30.0), within_s=4.0)
    assert error.message == "The deadline of 0.8 s has passed, after 1 output token."


@pytest.mark.parametrize("stream", STREAMS)
def test_a_broken_stream_waits_for_capacity_at_a_restarted_router(stream: Callable[..., list[int]]) -> None:
    def full(fake: FakeInference, request: object, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("baton-error", "Overloaded"), ("retry-after-ms", "10")))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Full.")
        yield

    with serving(FakeInference([breaks_after(1), full, full, slow(0.0, 2, 3)])) as (address, _):
        assert stream(address) == [1, 2, 3]
    with serving(FakeInference([full])) as (address, _):
        assert isinstance(_failure(lambda: stream(address), within_s=3.0), Overloaded)  # a new one is refused at once


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_is_cancelled_while_its_router_is_away(stream: Callable[..., list[int]]) -> None:
    fake = FakeInference([breaks_after(1), slow(0.01, 2, 3)])
    with serving(fake) as (address, _), pytest.raises(Cancelled):
        stream(address, lambda token_id, running: running.cancel() if token_id == 1 else None)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_is_cancelled_while_nothing_answers(stream: Callable[..., list[int]]) -> None:
    with serving(FakeInference([slow(0.01, *range(100))])) as (address, server):

        def end_it(token_id: int, running: Any) -> None:
            if token_id == 2:
                server.stop(0).wait()
                threading.Timer(0.5, running.cancel).start()

        error = _failure(lambda: stream(address, end_it, give_up_s=30.0), within_s=8.0)
    assert isinstance(error, Cancelled)


def test_a_stream_that_failed_raises_its_error_at_every_read() -> None:
    with (
        serving(FakeInference([breaks_after(1), breaks_after()])) as (address, _),
        Client(address, give_up_s=0.3) as client,
    ):
        stream = client.stream([1])
        errors = [
            _failure(read, within_s=3.0) for read in (lambda: list(stream), lambda: next(stream), lambda: stream.answer)
        ]
    assert isinstance(errors[0], NoWorkers)
    assert errors[1] is errors[2] is errors[0]


def test_a_hanging_router_is_reported_with_the_time_limit() -> None:
    class Hanging(FakeAdmin):
        def GetCluster(self, request: object, context: grpc.ServicerContext) -> admin_pb2.Cluster:  # noqa: N802
            self._cancel.wait()
            return admin_pb2.Cluster()

    fake = Hanging(held=True, states=[])  # type: ignore[abstract]
    with serving_admin(fake) as address, Admin(address, timeout_s=0.3) as admin:
        for call in (admin.cluster, lambda: list(admin.watch("op"))):
            error = _failure(call, within_s=3.0)  # type: ignore[arg-type]
            assert error.message == f"The server at {address} has not answered within 0.3 s."


def test_an_operation_is_watched_for_longer_than_a_call_may_take() -> None:
    fake = FakeAdmin(held=True, states=[operation("running", "draining")])  # type: ignore[abstract]
    with serving_admin(fake) as address, Admin(address, timeout_s=0.3) as admin:
        started = time.monotonic()
        states = []
        for seen in admin.watch("op"):
            states.append(seen.state)
            if time.monotonic() - started > 1.0:
                fake.release()
    assert len(states) > 3
    assert states[-1] == "cancelled"
