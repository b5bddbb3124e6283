"""`baton token new`: a valid token, shown once, and its entry for the tokens file."""

from __future__ import annotations

import json

import pytest

from baton.access.access import ADMIN, GENERATE, parse_tokens
from tests.cli.commands import baton


def test_the_entry_lets_the_token_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert baton("token", "new", "--tenant", 'acme "ü"', "--role", "generate", "--role", "admin", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    caller = parse_tokens(made["entry"]).identify([("authorization", f"Bearer {made['token']}")])
    assert (caller.tenant, caller.roles) == ('acme "ü"', {GENERATE, ADMIN})
    assert made["token"] not in made["entry"]


def test_token_and_entry_are_printed_and_each_token_is_another(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for _ in range(2):
        assert baton("token", "new", "--role", "admin") == 0
        token, entry = capsys.readouterr().out.split("\n", 1)
        parse_tokens(entry).identify([("authorization", f"Bearer {token}")]).require_role(ADMIN)
        shown.append(token)
    assert shown[0] != shown[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--tenant", "acme", "--role", "boss"), "'boss' is not a role"), ((), "give --tenant")],
)
def test_a_mistake_is_reported_in_one_sentence(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baton("token", "new", *arguments) == 1
    assert words in capsys.readouterr().err
