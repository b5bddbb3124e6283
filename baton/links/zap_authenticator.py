"""The ZAP authenticator of the worker link: accepts only the workers' key (ZeroMQ's RFC 27)."""

from __future__ import annotations

import asyncio

import zmq
from zmq.utils import z85

from baton.protocol.link_keys import LinkKeys, RouterKeys, WorkerKeys

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
DOMAIN = b"baton-workers"
MECHANISM_AT, KEY_AT, ZAP_FRAMES = 5, 6, 7  # version, request id, domain, address, identity, mechanism, key


def new_link_keys() -> LinkKeys:
    """New keys for one cluster."""
    (router, router_secret), (worker, worker_secret) = zmq.curve_keypair(), zmq.curve_keypair()
    return LinkKeys(
        RouterKeys(router.decode(), router_secret.decode(), worker.decode()),
        WorkerKeys(worker.decode(), worker_secret.decode(), router.decode()),
    )


class ZapAuthenticator:
    """Answers ZeroMQ's request at each handshake, on the event loop. Create it before the guarded socket is bound."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], guarded: zmq.Socket[bytes], keys: RouterKeys) -> None:
        self._accepted = z85.decode(keys.worker_public)
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP_ADDRESS)
        guarded.setsockopt(zmq.CURVE_SERVER, 1)
        guarded.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
        guarded.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        guarded.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Answer on the running event loop; handshakes wait for this call."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._answer)
        self._loop.call_soon(self._answer)

    def _answer(self) -> None:
        """Answer all pending requests, because ZeroMQ signals the descriptor once per change."""
        while not self._socket.closed:
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            accepted = (
                len(request) == ZAP_FRAMES and request[MECHANISM_AT] == b"CURVE" and request[KEY_AT] == self._accepted
            )
            status, text = (b"200", b"OK") if accepted else (b"400", b"not a worker of this cluster")
            request_id = request[1] if len(request) > 1 else b""
            self._socket.send_multipart([ZAP_VERSION, request_id, status, text, b"worker" if accepted else b"", b""])

    def close(self) -> None:
        """Stop answering."""
        if self._loop is not None and not self._socket.closed:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
