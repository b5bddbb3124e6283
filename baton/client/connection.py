"""The connection of a client to a gateway or a router: plain text or TLS, with or without a token."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import grpc
import grpc.aio

from baton.client.proxy import avoids_proxies
from baton.protocol.errors import ConfigError

CONNECT_S = 4.0  # Timeout of one attempt to connect, with TLS and the first frame
OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # A restarted gateway is back within seconds, so the time between attempts must not grow as it does by default.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", int(1000 * CONNECT_S)),  # Despite its name the timeout of one attempt
    # A call ends if the server answers no ping; the stream itself may be silent for long.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
]
Metadata = Sequence[tuple[str, str]]


def options(address: str) -> list[tuple[str, int]]:
    """gRPC's options for a channel to `address`. A private address is never reached through a proxy."""
    return [*OPTIONS, ("grpc.enable_http_proxy", 0)] if avoids_proxies(address) else OPTIONS


class Credentials(TypedDict, total=False):
    """The keyword arguments of a client that become its `Connection`."""

    token: str | None
    tls_ca: str | None
    tls_certificate: str | None
    tls_key: str | None


@dataclass(frozen=True, slots=True)
class Connection:
    """A client's credentials. None takes the environment variable's value; an empty text means "do not use".

    | argument | environment | meaning |
    | --- | --- | --- |
    | token | $BATON_TOKEN | bearer token |
    | tls_ca | $BATON_TLS_CA | PEM file of the CA that signed the server's certificate; turns TLS on |
    | tls_certificate, tls_key | $BATON_TLS_CERTIFICATE, $BATON_TLS_KEY | the client's own PEM files, for mutual TLS |
    """

    token: str | None = field(default=None, repr=False)
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None

    @property
    def metadata(self) -> Metadata:
        """The metadata of every call; raises `ConfigError` for a token that cannot be sent."""
        token = _or_environment(self.token, "BATON_TOKEN").strip()
        if not (token.isascii() and token.isprintable()):
            raise ConfigError("The token has invalid characters: copy it again.")
        return (("authorization", f"Bearer {token}"),) if token else ()

    def channel(self, address: str) -> grpc.Channel:
        """A channel to "host:port"; raises `ConfigError` for certificates that cannot be used."""
        credentials = self._credentials()
        if credentials is None:
            return grpc.insecure_channel(address, options(address))
        return grpc.secure_channel(address, credentials, options(address))

    def aio_channel(self, address: str) -> grpc.aio.Channel:
        """As `channel`, for asyncio."""
        credentials = self._credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(address, options(address))
        return grpc.aio.secure_channel(address, credentials, options(address))

    def _credentials(self) -> grpc.ChannelCredentials | None:
        """None for plain text; raises `ConfigError` when a file is missing, unreadable or not PEM."""
        ca = _or_environment(self.tls_ca, "BATON_TLS_CA")
        certificate = _or_environment(self.tls_certificate, "BATON_TLS_CERTIFICATE")
        key = _or_environment(self.tls_key, "BATON_TLS_KEY")
        if bool(certificate) != bool(key):
            raise ConfigError("A client's certificate needs its key: give both tls_certificate and tls_key.")
        if certificate and not ca:
            raise ConfigError("A client's certificate needs tls_ca too: the CA that signed the server's certificate.")
        if not ca:
            return None
        return grpc.ssl_channel_credentials(
            _read(ca, "tls_ca"),
            _read(key, "tls_key") if key else None,
            _read(certificate, "tls_certificate") if certificate else None,
        )


def _or_environment(given: str | None, name: str) -> str:
    return os.environ.get(name, "") if given is None else given


def _read(path: str, what: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} ({what}) cannot be read: {error.strerror}.") from None
    if b"-----BEGIN " not in content:
        raise ConfigError(f"{path} ({what}) has no PEM content.")
    return content
