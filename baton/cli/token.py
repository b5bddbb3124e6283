"""`baton token`: creates access tokens."""

from __future__ import annotations

import json
import secrets
from hashlib import sha256
from typing import Annotated

import typer

from baton.access.access import GENERATE, ROLES
from baton.cli.admin_options import Json, err, print_document
from baton.client.errors import InvalidRequest

PREFIX = "baton_"  # So that programs that search code for secrets recognise a token

token = typer.Typer(no_args_is_help=True)


@token.callback()
def _commands() -> None:
    """Create access tokens for clients and operators; docs/security.md explains their use.

    Examples:

        baton token new --tenant acme --json
    """


@token.command()
def new(
    tenant: Annotated[
        str, typer.Option(help="Tenant of the token's requests; optional for a token without the role generate.")
    ] = "",
    role: Annotated[
        list[str] | None,
        typer.Option(help=f"Role: {', '.join(ROLES)}; may be given more than once. Default: {GENERATE}."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a token. It is shown only once, because the token file has only its hash.

    Examples:

        baton token new --tenant acme

        baton token new --role admin --json

        baton token new --role watch
    """
    roles = list(dict.fromkeys(role or [GENERATE]))
    unknown = next((one for one in roles if one not in ROLES), None)
    if unknown is not None:
        raise InvalidRequest(f"{unknown!r} is not a role: give {' or '.join(f'--role {one}' for one in ROLES)}.")
    if GENERATE in roles and not tenant:
        raise InvalidRequest("A token with the role generate needs a tenant: give --tenant NAME.")
    made = PREFIX + secrets.token_urlsafe(32)
    entry = toml_entry(made, tenant, roles)
    if as_json:
        print_document({"token": made, "entry": entry})
        return
    err.print("The token, for the client's $BATON_TOKEN. It is not stored:")
    print(made, flush=True)
    err.print("The entry for the file that access.tokens_file names:")
    print(entry, flush=True)


def toml_entry(made: str, tenant: str, roles: list[str]) -> str:
    """A token's table in the token file. Strings and lists of JSON are valid TOML."""
    lines = ["[[token]]", f'sha256 = "{sha256(made.encode()).hexdigest()}"']
    if tenant:
        lines.append(f"tenant = {json.dumps(tenant, ensure_ascii=False)}")
    return "\n".join([*lines, f"roles = {json.dumps(roles)}"])
