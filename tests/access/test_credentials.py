"""Files of certificates and tokens: checked at start, followed when they change, kept when the new ones are no good."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from baton.access.credentials import Credentials, read_certificates
from baton.access.hot_reload import HotReload
from baton.config.schema import AccessSection
from baton.protocol.errors import ConfigError
from tests.certificates import self_signed


def _entry(token: str) -> str:
    return f'[[token]]\nsha256 = "{sha256(token.encode()).hexdigest()}"\ntenant = "acme"\nroles = ["generate"]\n'


def test_each_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    ours, other = self_signed(tmp_path, "ours"), self_signed(tmp_path, "other")
    certificate, key = str(ours.certificate), str(ours.key)
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    for plan, words in (
        (
            AccessSection(tls_certificate=str(tmp_path / "none"), tls_key=key),
            "none .access.tls_certificate. cannot be read",
        ),
        (
            AccessSection(tls_certificate=certificate, tls_key=str(tmp_path / "none")),
            "none .access.tls_key. cannot be read",
        ),
        (AccessSection(tls_certificate=certificate, tls_key=str(other.key)), "does not belong to the certificate"),
        (AccessSection(tls_certificate=certificate, tls_key=str(nonsense)), "no certificate and key in PEM"),
        (
            AccessSection(tls_certificate=certificate, tls_key=key, client_ca=str(nonsense)),
            "access.client_ca. has no PEM",
        ),
        (AccessSection(tokens_file=str(tmp_path / "none")), "none .access.tokens_file. cannot be read"),
        (
            AccessSection(tokens_file=str(nonsense)),
            "nonsense .access.tokens_file. cannot be used: it is not valid TOML",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            Credentials(plan)


def test_keys_are_not_shown(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "ours")
    found = read_certificates(AccessSection(tls_certificate=str(pair.certificate), tls_key=str(pair.key)))
    assert "PRIVATE KEY" not in repr(found)
    assert b"PRIVATE KEY" in found.key


def test_a_token_file_is_followed_and_a_bad_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(_entry("one"))
    tokens = Credentials(AccessSection(tokens_file=str(path))).tokens
    assert tokens is not None
    tokens.value.identify([("authorization", "Bearer one")])
    path.write_text(_entry("one") + _entry("another"))
    tokens.value.identify([("authorization", "Bearer another")])
    path.write_text("a secret that was pasted")
    for _ in range(3):
        tokens.value.identify([("authorization", "Bearer another")])
    lines = list(caplog.messages)
    assert len(lines) == 1
    assert "stays in use" in lines[0]
    assert "secret" not in lines[0]
    path.unlink()
    tokens.value.identify([("authorization", "Bearer another")])
    assert "cannot be read" in caplog.messages[-1]


def test_a_version_counts_what_was_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    value = HotReload([str(path)], path.read_text)
    assert [value.current(), value.current()] == [(1, "1"), (1, "1")]
    path.write_text("22")
    assert value.current() == (2, "22")
