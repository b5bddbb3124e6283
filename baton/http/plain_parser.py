"""Parses HTTP/1.1 as if no client asked for another protocol, which a server may ignore.

Java's client asks for HTTP/2 with every first request; httptools takes the body of such a request for the other
protocol's bytes.
"""

from __future__ import annotations

from typing import Any, Protocol

import httptools


class Connection(Protocol):
    """What the parser needs of its connection beside httptools' callbacks."""

    url: bytes
    headers: list[tuple[bytes, bytes]]


class PlainParser:
    """httptools' parser; a head with the header `upgrade` is parsed a second time, without that header."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._parser = _new(connection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    @property
    def asked_for_other(self) -> bool:
        """Whether the head is one that will be parsed a second time."""
        return bool(self._parser.should_upgrade()) and self._parser.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """Parse bytes; raises httptools' errors, and `HttpParserUpgrade` for CONNECT."""
        while data:
            try:
                self._parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                if not self.asked_for_other:
                    raise
                data = self._plain_head() + data[upgrade.args[0] :]
                self._parser = _new(self._connection)

    def _plain_head(self) -> bytes:
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        kept = (name + b": " + value for name, value in self._connection.headers if name != b"upgrade")
        first = method + b" " + self._connection.url + b" HTTP/" + version
        return b"\r\n".join((first, *kept, b"", b""))


def _new(connection: Connection) -> Any:
    parser = httptools.HttpRequestParser(connection)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn's
    return parser
