"""The time of a whole worker's turns while it decodes: its loop with role, reports and link, as in service.

The worker runs in a thread. This side of the ZeroMQ link plays the router, and the source of handoffs, whose notices it
sends without KV. The time of a turn is that in the worker's load report.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq
from baton.worker.router_link import RouterLink

from baton.config.schema import EngineSection
from baton.engine.batch import StepBudget
from baton.engine.host_pages import HostPages
from baton.engine.kv_pages import PagePool
from baton.harness.in_process import InProcessNetwork, InProcessTransport
from baton.kv_transfer.transport import Notice
from baton.protocol.codec import decode_to_router, encode_notice, encode_to_worker
from baton.protocol.handoff import HandoffNotice
from baton.protocol.messages import LoadReport, Register, RegisterAck, Reserve, Reserved, WorkerMessage
from baton.protocol.request import Request, SamplingParams
from baton.protocol.v1 import worker_pb2
from baton.protocol.worker import Endpoint, RoleName, WorkerInfo
from baton.worker.core.state import WorkerState
from baton.worker.heartbeat import HEARTBEAT, Heartbeat
from baton.worker.loop import WorkerLoop
from baton.worker.session import WorkerSession

NAME, INCARNATION = "decode-0", "1"
LIMIT_S = 60.0
WARM_TURNS = 5


class _Router:
    """The router's end of one worker's link."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self.address = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._deadline_s = time.monotonic() + LIMIT_S

    def say(self, *messages: Any) -> None:
        self._socket.send_multipart([NAME.encode(), encode_to_worker(list(messages))])

    def receive(self) -> Iterator[WorkerMessage]:
        """What the worker says, one by one, but for frames of nothing but tokens: those would take the worker's
        thread its time. Raises `TimeoutError`.
        """
        while True:
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0 or not self._socket.poll(int(1000 * left_s)):
                raise TimeoutError(f"The worker has not come to its end within {LIMIT_S:g} s.")
            identity, frame = self._socket.recv_multipart()
            if identity.endswith(HEARTBEAT.encode()):
                continue
            kinds = {slot.WhichOneof("kind") for slot in worker_pb2.ToRouter.FromString(frame).messages}
            if kinds != {"step_output"}:
                yield from decode_to_router(frame)[1]

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


def worker_turns(executor: Any, point: tuple[int, int], count: int, seed: int) -> list[float]:
    """Seconds of `count` turns in which `point[0]` sequences of about `point[1]` positions decode a token each."""
    batch = point[0]
    router, network = _Router(), InProcessNetwork()
    try:
        with _running(_worker(executor, router.address, network, batch)):
            said = router.receive()
            assert isinstance(next(said), Register)
            _hand_over(router, network, said, executor.config.vocab_size, point, count + 2 * WARM_TURNS, seed)
            turns: list[float] = []
            for message in said:
                if isinstance(message, LoadReport):
                    turns += [step.seconds for step in message.load.steps if step.decodes == batch]
                if len(turns) >= count + WARM_TURNS:
                    return turns[WARM_TURNS:]
            raise AssertionError
    finally:
        router.close()


def _worker(executor: Any, address: str, network: InProcessNetwork, batch: int) -> WorkerLoop:
    config, layout = executor.config, executor.layout
    budget = StepBudget(max(batch, layout.page_size), batch)
    pool = PagePool(layout.num_pages, layout.page_size)
    engine = EngineSection(checksum_every=0)
    state = WorkerState("", "random", frozenset(), config.context_tokens, budget, pool, engine=engine)
    info = WorkerInfo(
        NAME, INCARNATION, RoleName.DECODE, 0, Endpoint("", b"", 0, 0, layout), budget.chunk_tokens, batch
    )
    return WorkerLoop(
        session=WorkerSession(info, state, lambda: "2"),
        executor=executor,
        link=RouterLink(address, NAME, INCARNATION),
        make_transport=lambda agent: InProcessTransport(network, executor.pages, layout, agent),
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
    router: _Router,
    network: InProcessNetwork,
    said: Iterator[WorkerMessage],
    vocab_size: int,
    point: tuple[int, int],
    room: int,
    seed: int,
) -> None:
    """Hand a batch of sequences to the worker; all notices arrive in one turn."""
    (batch, context), rng = point, random.Random(seed)
    sampling = SamplingParams(max_tokens=room, ignore_eos=True)
    prompts = [tuple(rng.randrange(vocab_size) for _ in range(context - room // 2)) for _ in range(batch)]
    orders = [
        Reserve(f"r{index}/1", Request(f"r{index}", prompt, sampling), (), 0) for index, prompt in enumerate(prompts)
    ]
    router.say(RegisterAck("benchmark", 0.5, INCARNATION), *orders)
    notices: list[Notice] = []
    while len(notices) < batch:
        message = next(said)
        if isinstance(message, Reserved):
            held = message.reservation
            notice = HandoffNotice(held.reservation_id, held.request_id, held.known_tokens, (1,), held.generations)
            notices.append(Notice("prefill-0:1", encode_notice(notice)))
    network.transports[f"{NAME}:{INCARNATION}"].notices.extend(notices)
