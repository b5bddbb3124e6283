"""The access control of a cluster, as configured: paths and limits, never a secret. Pure."""

from __future__ import annotations

from baton.config.schema import AccessSection
from baton.protocol.address import is_loopback
from baton.protocol.errors import ConfigError


def access_words(access: AccessSection) -> str:
    """The access control in use, as a setting to print."""
    parts = []
    if access.tls_certificate:
        parts.append("mutual TLS" if access.client_ca else "TLS")
    if access.tokens_file:
        parts.append("tokens" if access.tls_certificate else "tokens (without TLS: sent in plain text)")
    return ", ".join(parts) or "open: no TLS, no tokens"


def check_access(access: AccessSection, admin_host: str) -> None:
    """Raise `ConfigError` for contradictory settings, and for an admin port without any access control."""
    if bool(access.tls_certificate) != bool(access.tls_key):
        given, missing = "tls_certificate", "tls_key"
        if access.tls_key:
            given, missing = missing, given
        raise ConfigError(f"access.{given} is set without access.{missing}: a certificate needs its key.")
    if access.client_ca and not access.tls_certificate:
        raise ConfigError("access.client_ca is set without access.tls_certificate: mutual TLS needs both.")
    if not (access.tokens_file or access.client_ca or access.open_admin or is_loopback(admin_host)):
        raise ConfigError(
            f"router.admin_host is {admin_host}, so any host that reaches the port could change the cluster: set "
            "access.tokens_file or access.client_ca, or access.open_admin = true if the network guards the port."
        )
