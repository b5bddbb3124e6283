"""The time of a whole worker's turns while it decodes: its loop with role, reports and link, as in service.

The worker runs in a thread. This side of its ZeroMQ links plays the router, the gateway that gets the tokens, and the
source of handoffs, whose notices it sends without KV. The time of a turn is that in the worker's load report.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from baton.config.schema import EngineSection
from baton.engine.batch import StepBudget
from baton.engine.host_pages import HostPages
from baton.engine.kv_pages import PagePool
from baton.harness.in_process import InProcessNetwork, InProcessTransport
from baton.kv_transfer.transport import Notice
from baton.links.keys import ONE_WAY
from baton.protocol.codec import FROM_WORKER, decode_frame, encode_frame, encode_notice
from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import Reserve, Reserved, Work, WorkerMessage
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import LoadReport
from baton.protocol.worker import Endpoint, RoleName, WorkerInfo
from baton.worker.background_transport import BackgroundTransport
from baton.worker.core.state import WorkerState
from baton.worker.heartbeat import Heartbeat
from baton.worker.links import WorkerLinks
from baton.worker.loop import WorkerLoop
from baton.worker.session import WorkerSession
from benchmarks.stream_clients import DIRECT, attach

NAME, INCARNATION = "decode-0", "1"
LIMIT_S = 60.0
WARM_TURNS = 5


class _Front:
    """The ends of one worker's links, as router and gateway."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._orders, self.address = self._bound()
        self._tokens, self._token_address = self._bound()
        self._poller = zmq.Poller()
        for socket in (self._orders, self._tokens):
            self._poller.register(socket, zmq.POLLIN)
        self._deadline_s = time.monotonic() + LIMIT_S

    def _bound(self) -> tuple[zmq.Socket[bytes], str]:
        socket = self._context.socket(zmq.ROUTER)
        return socket, f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"

    def attach(self) -> None:
        """Register the worker and open its link for tokens."""
        attach(self._orders, self._tokens, self._token_address, 1, LIMIT_S)

    def send(self, *messages: Any) -> None:
        self._orders.send_multipart([NAME.encode(), encode_frame(messages)])

    def receive(self) -> Iterator[WorkerMessage]:
        """The worker's messages to the router. Tokens are read and not decoded, which would take the worker's thread
        its time. Raises `TimeoutError`.
        """
        while True:
            left_s = self._deadline_s - time.monotonic()
            ready = dict(self._poller.poll(int(1000 * max(0.0, left_s))))
            if not ready:
                raise TimeoutError(f"The worker has not completed its turns within {LIMIT_S:g} s.")
            if self._tokens in ready:
                self._tokens.recv_multipart()
            if self._orders in ready:
                identity, frame = self._orders.recv_multipart()
                if not identity.endswith(ONE_WAY.encode()):
                    yield from decode_frame(frame, FROM_WORKER)[1]

    def close(self) -> None:
        self._orders.close(0)
        self._tokens.close(0)
        self._context.term()


def worker_turns(executor: Any, point: tuple[int, int], count: int, seed: int) -> list[float]:
    """Seconds of `count` turns in which `point[0]` sequences of about `point[1]` positions decode a token each.

    A turn is the mean of those that the worker has reported together.
    """
    batch = point[0]
    front, network = _Front(), InProcessNetwork()
    try:
        with _running(_worker(executor, front.address, network, batch)):
            front.attach()
            received = front.receive()
            _hand_over(front, network, received, executor.config.vocab_size, point, count + 2 * WARM_TURNS, seed)
            turns: list[float] = []
            for message in received:
                if isinstance(message, LoadReport):
                    for sample in message.load.steps:  # The sum of neighbouring steps of one kind
                        if sample.decodes == batch * sample.steps:
                            turns += [sample.seconds / sample.steps] * sample.steps
                if len(turns) >= count + WARM_TURNS:
                    return turns[WARM_TURNS:]
            raise AssertionError
    finally:
        front.close()


def _worker(executor: Any, address: str, network: InProcessNetwork, batch: int) -> WorkerLoop:
    config, layout = executor.config, executor.layout
    budget = StepBudget(max(batch, layout.page_size), batch)
    pool = PagePool(layout.num_pages, layout.page_size)
    engine = EngineSection(checksum_every=0)
    state = WorkerState("", "random", frozenset(), config.context_tokens, budget, pool, engine=engine)
    info = WorkerInfo(NAME, INCARNATION, RoleName.DECODE, 0, Endpoint("", layout), budget.chunk_tokens, batch)
    session = WorkerSession(info, state, lambda: "2")
    return WorkerLoop(
        session=session,
        executor=executor,
        links=WorkerLinks(NAME, address, INCARNATION),
        transport=BackgroundTransport(
            lambda agent: InProcessTransport(network, executor.pages, layout, agent), session.agent
        ),
        heartbeat=Heartbeat(address, NAME),
        checksum=executor.page_checksum,
        host_pages=HostPages(executor.pages, 0),
    )


@contextmanager
def _running(loop: WorkerLoop) -> Iterator[None]:
    thread = threading.Thread(target=loop.run, name=NAME, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.stop()
        thread.join(LIMIT_S)


def _hand_over(
    front: _Front,
    network: InProcessNetwork,
    received: Iterator[WorkerMessage],
    vocab_size: int,
    point: tuple[int, int],
    room: int,
    seed: int,
) -> None:
    """Hand a batch of sequences to the worker; all notices arrive in one turn."""
    (batch, context), rng = point, random.Random(seed)
    sampling = SamplingParams(max_tokens=room, ignore_eos=True)
    prompts = [tuple(rng.randrange(vocab_size) for _ in range(context - room // 2)) for _ in range(batch)]
    requests = [Request(f"r{index}", prompt, sampling) for index, prompt in enumerate(prompts)]
    front.send(*(Reserve(f"{made.request_id}/1", made.request_id, Work(made), DIRECT, 0) for made in requests))
    notices: list[Notice] = []
    while len(notices) < batch:
        message = next(received)
        if isinstance(message, Reserved):
            held = message.reservation
            notice = HandoffNotice(held.reservation_id, held.request_id, held.known_tokens, (1,), held.generations)
            notices.append(Notice("prefill-0:1", encode_notice(notice)))
    network.transports[f"{NAME}:{INCARNATION}"].notices.extend(notices)
