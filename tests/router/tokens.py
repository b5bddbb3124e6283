"""A token file with a token of each role."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROLES = {"user": "generate", "watcher": "watch", "operator": "admin"}  # Of each token


def token_file(folder: Path) -> str:
    """The path of a file with the tokens of `ROLES`."""
    path = folder / "tokens.toml"
    path.write_text("".join(_entry(token, role) for token, role in ROLES.items()))
    return str(path)


def _entry(token: str, role: str) -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f'[[token]]\nsha256 = "{digest}"\ntenant = "acme"\nroles = ["{role}"]\n'
