"""`baton token`: makes the tokens that callers show."""

from __future__ import annotations

import json
import secrets
from hashlib import sha256
from typing import Annotated

import typer

from baton.cli.admin_options import Json, err, print_document
from baton.client.errors import InvalidRequest

PREFIX = "baton_"  # so that a token is known for one, also by programs that look for secrets in code
ROLES = ("generate", "admin")

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
        str, typer.Option(help="Tenant of its requests; optional for a token that only administers.")
    ] = "",
    role: Annotated[
        list[str] | None, typer.Option(help="generate or admin; may be given twice. Default: generate.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a token. It is shown once: the router stores only its hash.

    Examples:

        baton token new --tenant acme

        baton token new --role admin --json
    """
    roles = list(dict.fromkeys(role or ["generate"]))
    unknown = next((one for one in roles if one not in ROLES), None)
    if unknown is not None:
        raise InvalidRequest(f"{unknown!r} is not a role: give --role generate or --role admin.")
    if "generate" in roles and not tenant:
        raise InvalidRequest("A token that may generate needs a tenant: give --tenant NAME.")
    made = PREFIX + secrets.token_urlsafe(32)
    entry = toml_entry(made, tenant, roles)
    if as_json:
        print_document({"token": made, "entry": entry})
        return
    err.print("The token, for the client ($BATON_TOKEN). It is not stored:")
    print(made, flush=True)
    err.print("The entry for the file that access.tokens_file names:")
    print(entry, flush=True)


def toml_entry(made: str, tenant: str, roles: list[str]) -> str:
    """The table of a token file. JSON's strings and lists are TOML's too."""
    lines = ["[[token]]", f'sha256 = "{sha256(made.encode()).hexdigest()}"']
    if tenant:
        lines.append(f"tenant = {json.dumps(tenant, ensure_ascii=False)}")
    return "\n".join([*lines, f"roles = {json.dumps(roles)}"])
