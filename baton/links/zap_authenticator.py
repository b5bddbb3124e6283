"""The ZAP authenticator of a server's socket (ZeroMQ's RFC 27): it notes each connection's public key.

A handshake proves that the peer has the secret key of its public key. ZeroMQ's request lacks the peer's identity, so
the server compares name and key when a frame arrives.
"""

from __future__ import annotations

import zmq
from zmq.utils import z85

from baton.links.socket_reader import SocketReader
from baton.protocol.link_keys import PeerKeys

KEY_PROPERTY = "User-Id"  # The property of a received frame that has its peer's public key, in Z85
ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
DOMAIN = b"baton"
MECHANISM_AT, KEY_AT, ZAP_FRAMES = 5, 6, 7  # version, request id, domain, address, identity, mechanism, key


class ZapAuthenticator:
    """Answers ZeroMQ's request at each handshake, on the event loop. Create it before the guarded socket is bound.

    Its address belongs to the context, so a context has one guarded socket.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], guarded: zmq.Socket[bytes], keys: PeerKeys) -> None:
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP_ADDRESS)
        self._reader = SocketReader(self._socket, self._answer)
        guarded.setsockopt(zmq.CURVE_SERVER, 1)
        guarded.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
        guarded.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        guarded.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)

    def start(self) -> None:
        """Answer on the running event loop; handshakes wait for this call."""
        self._reader.start()

    def _answer(self) -> None:
        while True:
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            has_key = len(request) == ZAP_FRAMES and request[MECHANISM_AT] == b"CURVE"
            status, text, key = (b"200", b"OK", z85.encode(request[KEY_AT])) if has_key else (b"400", b"no key", b"")
            request_id = request[1] if len(request) > 1 else b""
            self._socket.send_multipart([ZAP_VERSION, request_id, status, text, key, b""])

    def close(self) -> None:
        """Stop answering."""
        if not self._socket.closed:
            self._reader.stop()
        self._socket.close()
