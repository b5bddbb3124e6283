"""A worker whose transport takes long: its steps and tokens go on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from baton.kv_transfer.transport import TransferEvent, WriteDone, WriteFailed
from baton.protocol.codec import decode_notice
from baton.protocol.errors import HandoffFailed
from baton.protocol.gateway_messages import StepOutput
from baton.protocol.handoff import HandoffNotice
from baton.protocol.session_messages import Register, RegisterAck, Reregister
from baton.protocol.worker import Endpoint, RankAddress
from baton.worker.background_transport import BackgroundTransport, Opened
from baton.worker.core.role import WriteEnded, WritePages
from baton.worker.session import Phase
from tests.worker.loops import FakeTransport, Journal, make_loop, open_gateway, turn, whole
from tests.worker.sessions import LAYOUT, request

PEER = Endpoint("p:1", LAYOUT)
WRITE = WritePages(7, "p:1", (1,), (2,), None)
NOTICE = HandoffNotice("v1", "r1", 4, (5,), (0,))


@dataclass(eq=False)
class Slow:
    """Opens transports; each slow call waits until the test lets it go on. `calls` has the calls that were made."""

    gate: threading.Event = field(default_factory=threading.Event)
    calls: list[str] = field(default_factory=list)

    def __call__(self, agent: str) -> Any:
        if self.calls:
            self.pass_gate(f"open {agent}")
        else:
            self.calls.append(f"open {agent}")
        return SlowTransport(self, agent)

    def pass_gate(self, call: str) -> None:
        assert self.gate.wait(60)
        self.calls.append(call)


class SlowTransport(FakeTransport):
    """Refuses to connect an agent that is away."""

    def __init__(self, slow: Slow, agent: str) -> None:
        super().__init__(agent)
        self.slow = slow

    def connect(self, peer: Endpoint) -> None:
        self.slow.pass_gate(f"connect {peer.agent}")
        raise HandoffFailed(f"{peer.agent} cannot be reached.")

    def disconnect(self, agent: str) -> None:
        self.slow.pass_gate(f"disconnect {agent}")

    def write(self, *arguments: object) -> int:
        self.slow.calls.append("write")
        raise HandoffFailed("p:1 is not connected.")

    def notify(self, agent: str, notice: bytes) -> None:
        self.slow.calls.append(f"notify {agent}")
        if agent != "q:1":
            raise HandoffFailed(f"{agent} is not connected.")

    def poll(self) -> list[Any]:
        assert self.slow.gate.is_set() or len(self.slow.calls) == 1, "polled while a slow call runs"
        return []


def _until_quiet(transport: BackgroundTransport) -> list[Any]:
    events: list[Any] = []
    deadline = time.monotonic() + 60
    while transport.in_flight:
        assert time.monotonic() < deadline
        events += transport.poll()
    return events


def test_sequences_decode_and_their_tokens_are_sent_while_another_transport_opens() -> None:
    slow = Slow()
    loop, link = make_loop(Journal(), make_transport=slow)
    open_gateway(loop, link)
    turn(loop, link, RegisterAck("router", 0.5, "1"), whole(request(max_tokens=20)))
    link.inbox.append(Reregister("1", "another"))
    sent: list[StepOutput] = []
    while len(sent) < 5:
        link.sent.clear()
        loop._turn()
        sent += [message for message in link.sent if isinstance(message, StepOutput)]
        assert not any(isinstance(message, Register) for message in link.sent), "it has no transport yet"
    assert loop.session.phase is Phase.STARTING
    slow.gate.set()
    assert Register in turn(loop, link)
    assert slow.calls == ["open w:1", "open w:2"]
    loop.transport.close()


def test_calls_take_effect_in_order_and_a_write_to_a_peer_that_cannot_be_reached_fails() -> None:
    slow = Slow()
    transport = BackgroundTransport(slow, "w:1")
    transport.connect(PEER)
    transport.write(WRITE)
    transport.write(WritePages(8, "p:1", (), (), NOTICE))
    transport.write(WritePages(9, "q:1", (), (), NOTICE))
    transport.disconnect("p:1")
    transport.renew("w:2")
    assert transport.poll() == []
    assert transport.in_flight
    slow.gate.set()
    ended, refused, notified, opened = _until_quiet(transport)
    assert ended == WriteEnded(7, 0, 0.0, "p:1 is not connected.")
    assert refused == WriteEnded(8, 0, 0.0, "p:1 is not connected.")
    assert notified == WriteEnded(9, 0, 0.0)
    assert opened == Opened(Endpoint("w:2", LAYOUT))
    assert slow.calls == ["open w:1", "connect p:1", "write", "notify p:1", "notify q:1", "disconnect p:1", "open w:2"]
    transport.close()


class Noting(FakeTransport):
    """Writes down what is sent; `ended` has what `poll` returns next."""

    def __init__(self, agent: str) -> None:
        super().__init__(agent)
        self.sent: list[tuple[str, bool]] = []
        self.ended: list[TransferEvent] = []

    def connect(self, peer: Endpoint) -> None: ...

    def write(self, *arguments: object) -> int:
        agent, _, _, notice = arguments
        self.sent.append((f"write {agent}", notice is not None))
        return len(self.sent)

    def notify(self, agent: str, notice: bytes) -> None:
        assert decode_notice(notice) == NOTICE
        self.sent.append((f"notify {agent}", True))
        if agent == "gone:1":
            raise HandoffFailed("gone:1 is not connected.")

    def poll(self) -> list[Any]:
        ended, self.ended = self.ended, []
        return ended


def noting(*peers: Endpoint) -> tuple[BackgroundTransport, Noting]:
    network = Noting("w:1")
    transport = BackgroundTransport(lambda agent: network, "w:1")  # type: ignore[arg-type, return-value]
    for peer in peers:
        transport.connect(peer)
    while transport._running is not None:
        transport.poll()
    return transport, network


def test_a_notice_travels_with_the_pages_to_one_rank_and_follows_them_to_several() -> None:
    transport, network = noting(PEER, Endpoint("wide:1", LAYOUT, (RankAddress(), RankAddress())))
    transport.write(replace(WRITE, notice=NOTICE))
    transport.write(replace(WRITE, write_id=8, agent="wide:1", notice=NOTICE))
    assert network.sent == [("write p:1", True), ("write wide:1", False)]
    network.ended = [WriteDone(2, 64, 0.5), WriteDone(1, 32, 0.25)]
    assert transport.poll() == [WriteEnded(8, 64, 0.5), WriteEnded(7, 32, 0.25)]
    assert network.sent[2:] == [("notify wide:1", True)]
    transport.close()


def test_a_write_to_several_ranks_fails_with_its_notice_and_sends_none_after_an_error() -> None:
    transport, network = noting(Endpoint("gone:1", LAYOUT, (RankAddress(), RankAddress())))
    command = replace(WRITE, agent="gone:1", notice=NOTICE)
    transport.write(command)
    transport.write(replace(command, write_id=8))
    network.ended = [WriteDone(1, 64, 0.5), WriteFailed(2, "the write failed")]
    assert transport.poll() == [
        WriteEnded(7, 64, 0.5, "gone:1 is not connected."),
        WriteEnded(8, 0, 0.0, "the write failed"),
    ]
    assert network.sent[2:] == [("notify gone:1", True)]
    transport.close()
