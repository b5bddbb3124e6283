"""Frames of workers and gateways: impossible ones are refused, and no frame stops the router."""

from __future__ import annotations

import dataclasses
import random
import types
import typing
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol import bounds, gateway_messages, messages, session_messages
from baton.protocol.errors import InvalidRequest
from baton.protocol.handoff import HandoffOutcome, Reservation
from baton.protocol.request import FinishReason, Objectives, Request, SamplingParams
from baton.protocol.worker import RoleName, StepSample
from baton.router.core.core import RouterCore
from baton.simulator.deliveries import FRAMES
from baton.simulator.stepped_cluster import SteppedCluster
from baton.simulator.virtual_worker import CONTEXT_TOKENS
from tests.router.hand_driven import submission

WORKERS = ("prefill-0", "decode-0", "mixed-0", "stranger")
PEERS = (*WORKERS, "gateway-0", "gateway-1")
MESSAGES = typing.get_args(messages.WorkerMessage) + typing.get_args(gateway_messages.GatewayMessage)
REQUESTS = ("r0", "r1", "r2", "nobody", "probe/op/decode-0")
NUMBERS = st.one_of(st.integers(0, 12), st.integers(-2, 2**31 - 1))
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "request_id": st.sampled_from(REQUESTS),
    "request_ids": st.lists(st.sampled_from(REQUESTS), max_size=3).map(tuple),
    "reservation_id": st.sampled_from([f"{one}/{number}" for one in REQUESTS for number in range(3)]),
    "worker": st.sampled_from(WORKERS),
    "name": st.sampled_from(PEERS),
    "gateway": st.sampled_from(PEERS),
    "incarnation": st.sampled_from(["1", "2"]),
    "work": st.binary(max_size=4),
    "digest": st.sampled_from([bytes(16), b"1" * 16, b""]),
    "agent": st.sampled_from([f"{worker}:1" for worker in WORKERS]),
    "model_id": st.sampled_from(["model", "another"]),
    "dtype": st.sampled_from(["float32", "none"]),
    "error": st.sampled_from(["WorkerLost", "WrongRole", "HandoffFailed", "Nonsense", ""]),
    "stored": st.lists(st.binary(min_size=16, max_size=16), max_size=3).map(tuple),
    "evicted": st.lists(st.binary(min_size=15, max_size=16), max_size=1).map(tuple),
    "pages_total": st.sampled_from([24, 24, 7]),
}


def _values(name: str, hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, mostly such as could be true."""
    if name in BY_NAME:
        return BY_NAME[name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return st.one_of(*(_values("", arm) for arm in typing.get_args(hint)))
    if hint is type(None):
        return st.none()
    if typing.get_origin(hint) is tuple:
        arms = typing.get_args(hint)
        if arms[-1] is Ellipsis:
            return st.lists(_values("", arms[0]), max_size=3).map(tuple)
        return st.tuples(*(_values("", arm) for arm in arms))
    if dataclasses.is_dataclass(hint):
        return _instances(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    return {
        int: NUMBERS,
        float: st.one_of(st.floats(0.0, 10.0), st.floats()),
        str: st.text(max_size=8),
        bytes: st.binary(max_size=16),
        bool: st.booleans(),
    }[hint]


def _instances(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    fields = {one.name: _values(one.name, hints[one.name]) for one in dataclasses.fields(kind)}
    return st.builds(kind, **fields)


FRAME = st.tuples(
    st.sampled_from(PEERS),
    st.lists(st.one_of(*map(_instances, MESSAGES)), min_size=1, max_size=3),
    st.integers(0, 25),  # what the honest ones do before
)


def _cluster(seed: int = 1) -> SteppedCluster:
    cluster = SteppedCluster(random.Random(seed))
    for name in WORKERS[:3]:
        cluster.add(name, RoleName(name.split("-")[0]))
    cluster.settle()
    for index in range(3):
        cluster.submit(f"r{index}", [index] * 9, 12)
    return cluster


@settings(deadline=None, max_examples=250)
@given(seed=st.integers(0, 1000), frames=st.lists(FRAME, min_size=1, max_size=6))
def test_no_frame_of_a_worker_or_gateway_stops_the_router(seed: int, frames: list[tuple[str, list[Any], int]]) -> None:
    cluster = _cluster(seed)
    core = cluster.core
    core.requests.strict = False  # as in production: what no honest worker says is counted
    for number, (peer, batch, steps) in enumerate(frames):
        if number == 0:  # later ones could be answers to orders that honest workers cannot follow
            for _ in range(steps):
                cluster.step()
        try:
            _check(peer, batch, core)
        except InvalidRequest as error:
            assert error.message
            continue
        core.on_frame(peer, "1", batch, cluster.now)
        core.tick(cluster.now + number)
        core.membership.rates.rates()
    core.tick(cluster.now + 100.0)


def _check(peer: str, batch: list[Any], core: RouterCore) -> None:
    """Check a frame as the codec and the driver do."""
    for message in batch:
        bounds.check(message)
    FRAMES.check(peer, "1", batch, core.state, core.gateways)


def _refused(message: Any, words: str, peer: str = "decode-0") -> None:
    with pytest.raises(InvalidRequest, match=words):
        _check(peer, [message], _cluster().core)


def test_a_worker_registers_and_reports_for_itself_only() -> None:
    views = _cluster().core.state.workers
    _refused(session_messages.Register(views["prefill-0"].info), "another worker")
    _refused(session_messages.LoadReport(views["prefill-0"].load), "another worker")
    _check("decode-0", [session_messages.LoadReport(views["decode-0"].load)], _cluster().core)


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\x1b]0;title\x07"])
def test_no_text_of_a_worker_writes_to_a_terminal(text: str) -> None:
    info = _cluster().core.state.workers["decode-0"].info
    _refused(session_messages.Register(dataclasses.replace(info, host=text)), "control characters")
    endpoint = dataclasses.replace(info.endpoint, agent=f"decode-0:{text}")
    _refused(session_messages.Register(dataclasses.replace(info, endpoint=endpoint)), "control characters")


def test_a_worker_reserves_its_own_pages_only() -> None:
    fits = Reservation("r0/0", "r0", "decode-0:1", (3, 4), (1, 1), 0, 9)
    _check("decode-0", [messages.Reserved(fits)], _cluster().core)
    for change, words in (
        ({"agent": "mixed-0:1"}, "another worker"),
        ({"page_ids": (3, 24)}, "does not have"),
        ({"page_ids": (3, -1)}, "does not have"),
        ({"page_ids": (3, 3)}, "twice"),
        ({"generations": (1,)}, "do not match"),
        ({"known_tokens": 1 << 20}, "context"),
        ({"cached_pages": -1}, "cached_pages is -1: it must be at least 0"),
    ):
        _refused(messages.Reserved(dataclasses.replace(fits, **change)), words)


def test_workers_and_gateways_do_not_send_each_others_messages() -> None:
    _refused(messages.FirstToken("r0"), "a gateway sends FirstToken", "gateway-0")
    _refused(session_messages.Alive(), "a gateway sends Alive", "gateway-0")
    _refused(gateway_messages.GatewayLoad(0, 0, 0, 0.0), "a worker sends GatewayLoad")
    _refused(gateway_messages.StopRequest("r0", 0), "a worker sends StopRequest")
    for peer in ("gateway-0", "decode-0"):
        _check(peer, [session_messages.Goodbye("it was stopped")], _cluster().core)


def test_a_gateway_registers_itself_only() -> None:
    info = gateway_messages.GatewayInfo("gateway-1", "1", "tcp://127.0.0.1:5600")
    _check("gateway-1", [gateway_messages.RegisterGateway(info)], _cluster().core)
    _refused(gateway_messages.RegisterGateway(info), "another gateway than its sender", "gateway-0")
    again = dataclasses.replace(info, incarnation="2")
    _refused(gateway_messages.RegisterGateway(again), "another gateway than its sender", "gateway-1")
    _refused(gateway_messages.RegisterGateway(dataclasses.replace(info, name="decode-0")), "a worker sends")


def test_a_submission_must_be_possible() -> None:
    request = Request("r9", (1, 2, 3), SamplingParams(max_tokens=20))
    fits = submission(request)
    _check("gateway-0", [fits], _cluster().core)
    for change, words in (
        ({"request_id": ""}, "no id"),
        ({"max_tokens": CONTEXT_TOKENS}, "longer than the context"),
        ({"num_emitted": 21}, "more tokens were emitted"),
        ({"page_keys": (1, 2, 3, 4)}, "more pages than tokens"),
        ({"objectives": Objectives(ttft_s=float("nan"))}, "ttft_s is nan"),
        ({"num_prompt_tokens": 0}, "num_prompt_tokens is 0"),
        ({"digest": b"short"}, "digest has length 5"),
        ({"age_s": -1.0}, "age_s is -1.0"),
    ):
        _refused(dataclasses.replace(fits, **change), words, "gateway-0")
    long = gateway_messages.EmittedTokens("r0", b"", CONTEXT_TOKENS + 1)
    _refused(long, "more tokens were emitted than the context holds", "gateway-0")


def test_figures_must_be_figures() -> None:
    load = _cluster().core.state.workers["decode-0"].load
    for change, words in (
        ({"pages_free": -1}, "pages_free is -1: it must be at least 0"),
        ({"pages_free": 25}, "add up"),
        ({"pages_total": 1 << 40}, "add up"),
        ({"running": 1 << 60}, "running is .*at most"),
        ({"steps": (StepSample(1, 1, 1, 1, float("nan")),)}, "StepSample.seconds is nan"),
        ({"steps": (StepSample(1, 1, 1, 1, 0.1),) * 20_000}, "steps has length 20000"),
        ({"request_ids": ("x",) * 70_000}, "request_ids has length 70000"),
    ):
        _refused(session_messages.LoadReport(dataclasses.replace(load, **change)), words)
    _refused(session_messages.PagesChanged(1, (7,) * ((1 << 22) + 1), ()), "stored has length 4194305")
    _refused(session_messages.Goodbye("x" * 70_000), "reason has length 70000")
    _refused(session_messages.LinkMeasured("decode-0:1", 1, 0.0), "seconds is 0.0: it must be above 0")


def test_another_model_is_not_let_in() -> None:
    info = _cluster().core.state.workers["decode-0"].info
    layout = dataclasses.replace(info.endpoint.layout, model_id="another")
    endpoint = dataclasses.replace(info.endpoint, layout=layout)
    _refused(session_messages.Register(dataclasses.replace(info, endpoint=endpoint)), "its model is not the router")


def test_a_worker_can_neither_answer_nor_end_what_it_was_not_given() -> None:
    cluster = _cluster()
    cluster.add("decode-1", RoleName.DECODE)
    cluster.settle()
    for index in range(3):
        assert cluster.ended[f"r{index}"].error is None
    cluster.submit("mine", [1] * 9, 12)
    while not cluster.shown["mine"]:
        cluster.step()
    given = cluster.core.requests.live["mine"].assignees
    shown = len(cluster.shown["mine"])
    for worker in sorted(cluster.workers.keys() - given):
        for message in (
            messages.FirstToken("mine"),
            messages.SequenceEnded("mine", FinishReason.STOP, shown + 1),
            messages.RequestFailed("mine", "InternalError", "no"),
            messages.HandoffStalled("mine", "mine/1"),
            messages.HandoffEnded("mine", "mine/1", HandoffOutcome.FAILED),
        ):
            cluster.to_router(cluster.workers[worker], [message])
    assert len(cluster.shown["mine"]) == shown
    assert not cluster.core.state.unreachable
    cluster.settle()
    assert cluster.ended["mine"].error is None
    cluster.check_nothing_is_held()
