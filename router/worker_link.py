"""The router's end of the ZeroMQ links: one ROUTER socket for all workers, on the event loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import zmq
import zmq.asyncio

from baton.wire import decode_to_router, encode_to_worker
from cluster.errors import InvalidRequest
from cluster.messages import RouterMessage, WorkerMessage


class WorkerLink:
    """Messages of one worker arrive in the order it sent them; a worker is known by its socket's identity."""

    def __init__(self, address: str) -> None:
        """Bind to `address`, such as "tcp://127.0.0.1:*"; `address` then tells the port that was taken."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted worker takes over its name
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def receive(self) -> tuple[str, list[WorkerMessage]]:
        """The next frame: the worker's name and its messages. Frames that are none of ours are skipped."""
        while True:
            identity, frame = await self._socket.recv_multipart()
            try:
                return identity.decode(), decode_to_router(frame)
            except (InvalidRequest, UnicodeDecodeError, ValueError) as error:
                print(f"A frame on the worker link was ignored: {error}", flush=True)

    def send(self, worker: str, batch: Iterable[RouterMessage]) -> None:
        """Queue messages for a worker as one frame; a worker that is gone is found out by its silence."""
        # The plain socket underneath: a ROUTER never blocks, and skipping the future costs nothing.
        with contextlib.suppress(zmq.ZMQError):
            zmq.Socket.shadow(self._socket).send_multipart(
                [worker.encode(), encode_to_worker(list(batch))], flags=zmq.NOBLOCK
            )

    def close(self) -> None:
        self._socket.close()
        self._context.term()
