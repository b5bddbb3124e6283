"""Certificates for tests, made by the openssl command when they are needed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path

    def write_over(self, other: Pair) -> None:
        """Replace another pair by this one, as a certificate renewal does."""
        for ours, theirs in ((self.certificate, other.certificate), (self.key, other.key)):
            fresh = theirs.with_suffix(".new")
            fresh.write_bytes(ours.read_bytes())
            fresh.replace(theirs)


def self_signed(folder: Path, name: str) -> Pair:
    """A certificate for this machine that is its own CA."""
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(pair.key), "-out", str(pair.certificate), "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    return pair
