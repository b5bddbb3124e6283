"""The credentials of the servers: certificate, key, CA of the clients, and tokens, read from files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from baton.access.access import Access, parse_tokens
from baton.access.hot_reload import HotReload
from baton.config.schema import AccessSection
from baton.protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Certificates:
    """A certificate with its key and the CA of client certificates: PEM texts for gRPC, a context for HTTP."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None
    context: ssl.SSLContext = field(repr=False)  # For HTTP

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for gRPC."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class Credentials:
    """All servers' credentials, reloaded when the files change. Raises `ConfigError` when they are invalid."""

    def __init__(self, access: AccessSection) -> None:
        self.access = access
        self._certificates: HotReload[Certificates] | None = None
        self.tokens: HotReload[Access] | None = None
        if access.tls_certificate:
            paths = [path for path in (access.tls_certificate, access.tls_key, access.client_ca) if path]
            self._certificates = HotReload(paths, lambda: read_certificates(access))
        if access.tokens_file:
            self.tokens = HotReload([access.tokens_file], lambda: read_tokens(access.tokens_file))

    def add_port(self, server: grpc.aio.Server, address: str) -> int:
        """Let a server listen on "host:port", with TLS if configured. Returns the port; raises gRPC's errors."""
        if self._certificates is None:
            return int(server.add_insecure_port(address))
        certificates = self._certificates
        seen, first = certificates.current()

        def newer() -> grpc.ServerCertificateConfiguration | None:
            """The changed certificates; gRPC calls this before each handshake, from its own thread."""
            nonlocal seen
            version, value = certificates.current()
            if version == seen:
                return None
            seen = version
            return value.configuration

        credentials = grpc.dynamic_ssl_server_credentials(first.configuration, newer, bool(self.access.client_ca))
        return int(server.add_secure_port(address, credentials))

    def ssl_context(self) -> ssl.SSLContext | None:
        """The context of an HTTP server, which uses changed certificates from the next handshake on; None: no TLS."""
        if self._certificates is None:
            return None
        certificates = self._certificates

        def use_newest(connection: ssl.SSLObject, server_name: str | None, context: ssl.SSLContext) -> None:
            connection.context = certificates.value.context

        context = read_certificates(self.access).context
        context.sni_callback = use_newest  # Called in every handshake
        return context


def read_certificates(access: AccessSection) -> Certificates:
    """Read and check certificate, key and CA; raises `ConfigError` naming the file and the key of the configuration."""
    certificate = _read(access.tls_certificate, "access.tls_certificate")
    key = _read(access.tls_key, "access.tls_key")
    client_ca = _read(access.client_ca, "access.client_ca") if access.client_ca else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key must fail, not ask for its password on a terminal.
        context.load_cert_chain(access.tls_certificate, access.tls_key, password=lambda: "")
    except OSError as error:  # ssl.SSLError is one
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"The key in {access.tls_key} (access.tls_key) does not belong to the certificate in "
                f"{access.tls_certificate} (access.tls_certificate)."
            ) from None
        raise ConfigError(
            f"{access.tls_certificate} and {access.tls_key} hold no certificate and key in PEM without a password "
            "(access.tls_certificate, access.tls_key)."
        ) from None
    if client_ca is not None:
        try:
            context.load_verify_locations(access.client_ca)
        except OSError:
            raise ConfigError(f"{access.client_ca} (access.client_ca) has no PEM certificate.") from None
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return Certificates(certificate, key, client_ca, context)


def read_tokens(path: str) -> Access:
    """Read and check the token file; raises `ConfigError`."""
    content = _read(path, "access.tokens_file")
    try:
        return parse_tokens(content.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{path} (access.tokens_file) cannot be used: it is not UTF-8.") from None
    except ValueError as error:
        raise ConfigError(f"{path} (access.tokens_file) cannot be used: {error}.") from None


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} ({key}) cannot be read: {error.strerror}.") from None
