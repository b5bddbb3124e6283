"""The tables of docs/models.md are generated from the families and their tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.engine.families.table import FAMILIES
from tests.engine import models_document as document


def test_the_tables_in_the_checkout_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert document.main(["--check"]) == 0, capsys.readouterr().out


def test_every_family_is_described_and_compared_with_transformers_in_its_plain_form() -> None:
    assert list(document.descriptions()) == sorted(FAMILIES)
    assert all(all(words) for words in document.descriptions().values())
    assert all("default" in {form.rope for form in document.forms_of(name)} for name in FAMILIES)


def test_a_table_that_differs_is_named_and_then_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "models.md"
    copy.write_text(document.DOCUMENT.read_text().replace("| refused |", "| tested |"))
    monkeypatch.setattr(document, "DOCUMENT", copy)
    assert [document.main([*flags]) for flags in (["--check"], [], ["--check"])] == [1, 0, 0]
    assert "differs" in capsys.readouterr().out
