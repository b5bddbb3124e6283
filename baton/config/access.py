"""What guards a cluster, as its configuration says it. Paths and limits only: no secret passes here."""

from __future__ import annotations

from dataclasses import dataclass

from baton.config import defaults
from baton.protocol.address import is_loopback
from baton.protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AccessPlan:
    """The section [access], with every path absolute."""

    tls_certificate: str = ""
    tls_key: str = ""
    client_ca: str = ""
    tokens_file: str = ""
    share_prefixes: bool = False
    max_prompt_tokens: int = 0  # 0: the model's context
    max_message_mib: int = defaults.MAX_MESSAGE_MIB
    max_streams_per_tenant: int = 0  # 0: no limit
    open_admin: bool = False

    @property
    def told(self) -> str:
        """What is on, in words, for those who start a cluster."""
        parts = []
        if self.tls_certificate:
            parts.append("mutual TLS" if self.client_ca else "TLS")
        if self.tokens_file:
            parts.append("tokens" if self.tls_certificate else "tokens (without TLS: they travel readable)")
        return ", ".join(parts) or "open: no TLS, no tokens"

    def check(self, admin_host: str) -> None:
        """Raise `ConfigError` for settings that contradict each other, or that leave the administration to anybody."""
        if bool(self.tls_certificate) != bool(self.tls_key):
            given, missing = "tls_certificate", "tls_key"
            if self.tls_key:
                given, missing = missing, given
            raise ConfigError(f"access.{given} is set without access.{missing}: a certificate and its key go together.")
        if self.client_ca and not self.tls_certificate:
            raise ConfigError("access.client_ca is set without access.tls_certificate: mutual TLS needs both.")
        if not (self.tokens_file or self.client_ca or self.open_admin or is_loopback(admin_host)):
            raise ConfigError(
                f"router.admin_host is {admin_host}, where anybody who reaches the port could change the cluster: set "
                "access.tokens_file or access.client_ca, or access.open_admin = true if something else guards it."
            )
