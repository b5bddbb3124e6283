"""The example file and the reference of keys are generated from the schema and up to date."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from baton.config.parse import parse_config
from baton.config.reference import cluster_toml, sections, with_tables
from baton.deploy import config_files as command


def test_the_files_in_the_checkout_are_generated_from_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--check"]) == 0, capsys.readouterr().out


def test_the_example_file_has_every_key_with_its_default() -> None:
    assert parse_config(cluster_toml()) == parse_config()
    for section in sections():
        table = tomllib.loads(cluster_toml())
        for part in section.name.split("."):
            table = table[part]
        assert {key.name for key in section.keys} <= set(table)
    given = {name: set(table) for name, table in tomllib.loads(cluster_toml()).items()}
    assert given == {name: set(table) for name, table in parse_config().model_dump().items()}


def test_every_key_and_every_table_is_described() -> None:
    assert [key.name for section in sections() for key in section.keys if not key.text] == []
    assert [section.name for section in sections() if not section.text] == []


def test_the_reference_states_the_allowed_values_of_a_key() -> None:
    values = {f"{section.name}.{key.name}": key.values for section in sections() for key in section.keys}
    assert values["pools.prefill"] == "integer from 0 to 1024"
    assert values["router.lost_after_s"] == "number above 0"
    assert values["engine.gpu_memory_fraction"] == 'number from 0.05 to 0.98 or "auto"'
    assert values["engine.attention"] == '"auto", "fa2", "fa3"'
    assert values["engine.cuda_graphs"] == "true, false"


def test_the_pools_have_the_same_keys_which_are_written_once() -> None:
    same = {section.name: section.same_as for section in sections() if section.same_as}
    assert same == dict.fromkeys(("placement.decode", "placement.mixed", "placement.gateway"), "placement.prefill")
    assert cluster_toml().count("resources = ") == 1


def test_no_line_of_the_example_is_too_long() -> None:
    assert max(map(len, cluster_toml().splitlines())) <= 120


def test_a_file_that_differs_is_named_and_then_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example, document = tmp_path / "cluster.toml", tmp_path / "configuration.md"
    document.write_text(command.DOCUMENT.read_text().replace("| `4096` |", "| `4095` |"))
    for name, path in (("ROOT", tmp_path), ("EXAMPLE", example), ("DOCUMENT", document)):
        monkeypatch.setattr(command, name, path)
    assert command.main(["--check"]) == 1
    output = capsys.readouterr().out
    assert "cluster.toml differs" in output
    assert "configuration.md differs" in output
    assert not example.exists()
    assert command.main([]) == 0
    assert command.main(["--check"]) == 0
    assert example.read_text() == cluster_toml()


def test_a_document_without_its_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs one block"):
        with_tables("# Configuration\n")
