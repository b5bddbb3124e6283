"""The steps of a stream, without a router: which calls a client makes after a break, and what ends the stream."""

from __future__ import annotations

import pytest

from baton.client.resume import RETRY_S, Fail, Open, Pause, Ping, Read, Resume, Step, Steps
from baton.protocol.errors import Cancelled, InternalError, NoWorkers
from baton.protocol.v1 import inference_pb2
from tests.client.failed_call import Failed

BROKEN = Failed("UNAVAILABLE", "Socket closed")


def _message(*token_ids: int, first: int = 0) -> inference_pb2.GenerateResponse:
    tokens = [inference_pb2.Token(index=first + place, id=token_id) for place, token_id in enumerate(token_ids)]
    return inference_pb2.GenerateResponse(tokens=tokens)


def _stream() -> tuple[Resume, Steps, Step]:
    """A stream that has opened its call, and its current step."""
    history = Resume(inference_pb2.GenerateRequest(request_id="r"), "host:1", timeout_s=None)
    steps = history.steps()
    assert next(steps) == Open(history.request, None)
    return history, steps, steps.send(None)


def test_a_stream_is_opened_once_and_read_to_its_end() -> None:
    history, steps, step = _stream()
    for message in (_message(5), _message(6, 7, first=1)):
        assert step == Read()
        step = steps.send(message)
    with pytest.raises(StopIteration):
        steps.send(None)
    assert [token.id for token in history.tokens] == [5, 6, 7]
    with pytest.raises(InternalError):
        history.whole_answer  # noqa: B018 - the message with the finish is missing


def test_a_broken_stream_pings_the_router_and_opens_the_rest() -> None:
    history, steps, _ = _stream()
    steps.send(_message(5, 6))
    assert steps.throw(BROKEN) == Pause(0.0)  # The first try is immediate
    assert isinstance(steps.send(None), Ping)
    assert steps.throw(BROKEN) == Pause(RETRY_S)
    assert isinstance(steps.send(None), Ping)
    step = steps.send(None)
    assert isinstance(step, Open)
    assert (step.request.resume_from, list(step.request.emitted), history.breaks) == (2, [5, 6], 2)
    assert steps.send(None) == Read()


@pytest.mark.parametrize("after_the_ping", [False, True])
def test_a_stream_that_is_cancelled_while_it_is_broken_opens_no_call(after_the_ping: bool) -> None:
    history, steps, _ = _stream()
    steps.send(_message(5))
    steps.throw(BROKEN)
    if after_the_ping:
        assert isinstance(steps.send(None), Ping)
    history.cancelled = True
    step = steps.send(None)
    assert isinstance(step, Fail)
    assert isinstance(step.error, Cancelled)


def test_a_first_call_that_finds_no_router_fails_at_once() -> None:
    _, steps, _ = _stream()
    step = steps.throw(Failed("UNAVAILABLE", "failed to connect to all addresses; Connection refused"))
    assert isinstance(step, Fail)
    assert isinstance(step.error, NoWorkers)
