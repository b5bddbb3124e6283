"""Authentication and authorisation: bearer tokens, each with a tenant and roles.

Only the SHA-256 of a token is stored. A token is looked up by its hash, so the time of a look-up reveals nothing about
other tokens. Tokens are random and long (`baton token new`), so a hash without salt is enough.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from baton.protocol.errors import PermissionDenied, Unauthenticated

GENERATE, ADMIN = "generate", "admin"
WATCH = "watch"  # Read metrics and the state of the cluster; who has `admin` may, too
ROLES = (GENERATE, ADMIN, WATCH)
MAX_TENANT_BYTES = 256
MAX_TOKEN_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant and roles of a token."""

    tenant: str
    roles: frozenset[str]

    def require_role(self, role: str) -> None:
        """Raise `PermissionDenied` unless the caller has the role."""
        if role not in self.roles and (role, ADMIN in self.roles) != (WATCH, True):
            raise PermissionDenied(
                f"This call needs a token with the role {role!r}; the given token has {', '.join(sorted(self.roles))}."
            )

    def tenant_for(self, named: str) -> str:
        """The tenant of a request that names the tenant `named` ("": none); raises `PermissionDenied` for another."""
        if named and named != self.tenant:
            raise PermissionDenied("The request names a tenant other than its token's: omit the tenant.")
        return self.tenant


@dataclass(frozen=True, slots=True)
class Access:
    """The registered callers, by the SHA-256 of their token in hexadecimal."""

    callers: Mapping[str, Caller] = field(repr=False)

    def identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """The caller whose token is in a call's metadata; raises `Unauthenticated` unless there is one valid token."""
        given = [value for key, value in metadata if key == "authorization"]
        if not given:
            raise Unauthenticated("This cluster requires a token: give token=… or set $BATON_TOKEN.")
        scheme, _, token = str(given[0]).partition(" ")
        if len(given) > 1 or scheme.lower() != "bearer" or len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated('Give one token, as the metadata "authorization: Bearer TOKEN".')
        caller = self.callers.get(sha256(token.strip().encode()).hexdigest())
        if caller is None:
            raise Unauthenticated("The token is invalid: it was mistyped, or removed from the token file.")
        return caller


def parse_tokens(text: str) -> Access:
    """Parse a token file; raises `ValueError` naming the mistake, without any value, because that may be a token.

    [[token]]
    sha256 = "64 hexadecimal digits"
    tenant = "acme"
    roles = ["generate"]
    """
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise ValueError("it is not valid TOML") from None
    entries = document.pop("token", [])
    if document or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it may hold only [[token]] tables, each with sha256, tenant and roles")
    callers: dict[str, Caller] = {}
    for number, entry in enumerate(entries, 1):
        digest, caller = _parse_entry(entry, f"its token {number}")
        if digest in callers:
            raise ValueError(f"its token {number} is listed twice")
        callers[digest] = caller
    return Access(callers)


def _parse_entry(entry: dict[str, Any], which: str) -> tuple[str, Caller]:
    if set(entry) - {"sha256", "tenant", "roles"}:
        raise ValueError(f"{which} has an unknown key: it may have sha256, tenant and roles, never the token itself")
    digest, tenant, roles = entry.get("sha256"), entry.get("tenant", ""), entry.get("roles")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"{which} needs sha256: the token's SHA-256 as 64 lower-case hexadecimal digits")
    if not isinstance(roles, list) or not roles or not all(role in ROLES for role in roles):
        raise ValueError(f"{which} needs roles: a list of {', '.join(ROLES)}")
    if not isinstance(tenant, str) or len(tenant.encode()) > MAX_TENANT_BYTES or (GENERATE in roles and not tenant):
        raise ValueError(f"{which} needs a tenant: a text of at most {MAX_TENANT_BYTES} bytes")
    return digest, Caller(tenant, frozenset(roles))
