"""A minimal gRPC client: it timestamps bytes as they arrive and parses them later.

Python's gRPC client spends more time on a message than the router does. To measure the router alone, this client does
nothing between two reads. It has only the parts of HTTP/2 (RFC 9113) that the benchmark needs: no flow control (the
windows are opened to their maximum), no state of header compression, no errors.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0x0, 0x1, 0x4, 0x6, 0x8
_END_STREAM = 0x1
_WIDE = 2**31 - 1


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field without indexing (RFC 7541, 6.2.2), both parts shorter than 127 bytes."""
    return bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


class Http2Reader:
    """Streams of one method over one connection."""

    def __init__(self, port: int, method: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fields = [(":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost")]
        fields += [("content-type", "application/grpc"), ("te", "trailers")]
        self._headers = b"".join(_literal(name, value) for name, value in fields)
        self._next_stream = 1
        self._chunks: list[tuple[float, bytes]] = []
        self._scanned, self._unscanned = 0, b""  # Number of scanned chunks, and the start of an incomplete frame.
        settings = _frame(_SETTINGS, 0, 0, struct.pack(">HI", 0x4, _WIDE))
        window = _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WIDE - 65_535))
        self._socket.sendall(_PREFACE + settings + window)

    def request(self, message: bytes) -> int:
        """Send one request; returns its stream id."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        body = b"\0" + struct.pack(">I", len(message)) + message
        self._socket.sendall(_frame(_HEADERS, 0x4, stream, self._headers) + _frame(_DATA, 0x1, stream, body))
        return stream

    def read(self, timeout_s: float) -> bool:
        """Keep the next bytes with their time of arrival; False when none arrive within `timeout_s`."""
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(1 << 20)
        except TimeoutError:
            return False
        if not data:
            raise RuntimeError("The router closed the connection.")
        self._chunks.append((time.monotonic(), data))
        # The server expects acknowledgements of its pings and settings.
        if data[3] == _PING and len(data) == 17 and not data[4]:
            self._socket.sendall(_frame(_PING, 0x1, 0, data[9:17]))
        elif data[3] == _SETTINGS and not data[4]:
            self._socket.sendall(_frame(_SETTINGS, 0x1, 0, b""))
        return True

    def ended(self) -> list[int]:
        """Ids of the streams whose last frame was read since the last call."""
        data = self._unscanned + b"".join(chunk for _, chunk in self._chunks[self._scanned :])
        self._scanned = len(self._chunks)
        ended, start = [], 0
        while len(data) >= start + 9:
            after = start + 9 + int.from_bytes(data[start : start + 3], "big")
            if after > len(data):
                break
            if data[start + 3] in (_DATA, _HEADERS) and data[start + 4] & _END_STREAM:
                ended.append(int.from_bytes(data[start + 5 : start + 9], "big"))
            start = after
        self._unscanned = data[start:]
        return ended

    def messages(self) -> Iterator[tuple[int, float, bytes]]:
        """(stream id, arrival of its last byte, message) of everything read."""
        buffered, bodies = bytearray(), dict[int, bytearray]()
        for arrived, data in self._chunks:
            buffered += data
            while len(buffered) >= 9:
                length = int.from_bytes(buffered[:3], "big")
                if len(buffered) < 9 + length:
                    break
                kind, stream = buffered[3], int.from_bytes(buffered[5:9], "big")
                if kind == _DATA:
                    body = bodies.setdefault(stream, bytearray())
                    body += buffered[9 : 9 + length]
                    while len(body) >= 5 and len(body) >= 5 + (size := int.from_bytes(body[1:5], "big")):
                        yield stream, arrived, bytes(body[5 : 5 + size])
                        del body[: 5 + size]
                del buffered[: 9 + length]

    def close(self) -> None:
        self._socket.close()
