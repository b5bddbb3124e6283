"""Who may call: tokens, tenants, roles and limits, without a socket."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.access.access import ADMIN, GENERATE, parse_tokens
from baton.config.access import access_words, check_access
from baton.config.schema import AccessSection
from baton.gateway.intake import check_prompt, most_prompt_tokens
from baton.links.log_rate_limit import EVERY_S, LogRateLimit
from baton.protocol.errors import ConfigError, PermissionDenied, PromptTooLong, Unauthenticated

TOKEN = "baton_of-acme"
DIGEST = sha256(TOKEN.encode()).hexdigest()
ENTRY = f'[[token]]\nsha256 = "{DIGEST}"\ntenant = "acme"\nroles = ["generate"]\n'


def _shown(*values: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "x"), *(("authorization", value) for value in values)]


def test_a_token_tells_the_tenant_and_the_roles() -> None:
    caller = parse_tokens(ENTRY).identify(_shown(f"Bearer {TOKEN}"))
    assert caller.tenant == "acme"
    caller.require_role(GENERATE)
    with pytest.raises(PermissionDenied, match="admin"):
        caller.require_role(ADMIN)


@pytest.mark.parametrize(
    "values",
    [(), ("",), (TOKEN,), (f"Basic {TOKEN}",), ("Bearer ",), (f"Bearer {TOKEN}x",), (f"Bearer {TOKEN}",) * 2],
)
def test_a_caller_without_a_valid_token_is_unknown(values: tuple[str, ...]) -> None:
    with pytest.raises(Unauthenticated) as caught:
        parse_tokens(ENTRY).identify(_shown(*values))
    assert TOKEN not in caught.value.message


@given(st.text(max_size=30))
def test_any_text_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(Unauthenticated):
        parse_tokens(ENTRY).identify(_shown(f"Bearer {text}"))


def test_a_request_may_name_its_own_tenant_only() -> None:
    caller = parse_tokens(ENTRY).identify(_shown(f"bearer {TOKEN}"))
    assert caller.tenant_for("") == caller.tenant_for("acme") == "acme"
    with pytest.raises(PermissionDenied, match="a tenant other than"):
        caller.tenant_for("rival")


def test_an_administrator_needs_no_tenant() -> None:
    access = parse_tokens(ENTRY.replace('tenant = "acme"\n', "").replace("generate", "admin"))
    access.identify(_shown(f"Bearer {TOKEN}")).require_role(ADMIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("secret stuff", "TOML"),
        ("token = 3", "only"),
        ("other = 3", "only"),
        (ENTRY.replace("sha256", "token"), "never the token itself"),
        (ENTRY.replace(DIGEST, "secret"), "64"),
        (ENTRY.replace("generate", "secret"), "roles"),
        (ENTRY.replace('["generate"]', "[]"), "roles"),
        (ENTRY.replace('"acme"', '""'), "tenant"),
        (ENTRY.replace('"acme"', "3"), "tenant"),
        (ENTRY + ENTRY, "twice"),
    ],
)
def test_a_mistake_in_the_token_file_is_named_and_no_value_repeated(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_tokens(text)
    assert "secret" not in str(caught.value)
    assert DIGEST not in str(caught.value)


def test_hashes_are_not_shown() -> None:
    assert DIGEST not in repr(parse_tokens(ENTRY))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9"])
def test_administration_on_this_machine_needs_nothing(host: str) -> None:
    check_access(AccessSection(), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "router.example"])
def test_administration_for_others_needs_a_guard(host: str) -> None:
    with pytest.raises(ConfigError, match=r"access\.tokens_file or access\.client_ca"):
        check_access(AccessSection(), host)
    check_access(AccessSection(tokens_file="t"), host)
    check_access(AccessSection(tls_certificate="c", tls_key="k", client_ca="ca"), host)
    check_access(AccessSection(open_admin=True), host)


@pytest.mark.parametrize(
    ("access", "words"),
    [
        (AccessSection(tls_key="k"), r"access\.tls_key is set without access\.tls_certificate"),
        (AccessSection(tls_certificate="c"), r"access\.tls_certificate is set without access\.tls_key"),
        (AccessSection(client_ca="ca"), r"access\.client_ca is set without access\.tls_certificate"),
    ],
)
def test_settings_that_need_each_other_come_together(access: AccessSection, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_access(access, "127.0.0.1")


def test_what_guards_the_cluster_is_told() -> None:
    assert access_words(AccessSection()) == "open: no TLS, no tokens"
    assert "plain text" in access_words(AccessSection(tokens_file="t"))
    every = AccessSection(tls_certificate="c", tls_key="k", client_ca="a", tokens_file="t")
    assert access_words(every) == "mutual TLS, tokens"


def test_a_prompt_may_be_as_long_as_configured() -> None:
    limited, open_to_all = AccessSection(max_prompt_tokens=10), AccessSection()
    check_prompt(limited, 10)
    with pytest.raises(PromptTooLong, match="11 tokens; this cluster accepts 10"):
        check_prompt(limited, 11)
    check_prompt(open_to_all, 1 << 30)
    assert (most_prompt_tokens(limited, 5), most_prompt_tokens(limited, 50)) == (5, 10)
    assert most_prompt_tokens(open_to_all, 50) == 50


def test_complaints_are_few_and_counted() -> None:
    complaints = LogRateLimit()
    assert complaints.line("bad", 0.0) == "bad"
    assert [complaints.line("bad", 0.1 * step) for step in range(10)] == [None] * 10
    assert complaints.line("bad", EVERY_S) == "bad (and 10 more like it before)"
