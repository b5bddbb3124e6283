"""A configuration key has one default, in the schema: the code it configures receives its section."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

from baton.config.process_config import ResolvedEngine
from baton.config.reference import sections
from baton.config.schema import GatewaySection

ROOT = Path(__file__).resolve().parents[2]
CONFIGURED = ("baton/config", "baton/gateway", "baton/worker", "router", "prefill_worker", "decode_worker", "deploy")
SCHEMA = ROOT / "baton" / "config" / "schema.py"
APART = "share_prefixes"  # isolation of tenants is the default everywhere


def _defaults(path: Path) -> list[tuple[str, str]]:
    """(class, field) for every field of a class that has a plain value as its default."""
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    return [
        (defined.name, field.target.id)
        for defined in classes
        for field in defined.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(field.value, ast.Constant)
    ]


def test_no_key_has_a_second_default() -> None:
    keys = {key.name for section in sections() for key in section.keys} - {APART}
    files = [path for package in CONFIGURED for path in sorted((ROOT / package).rglob("*.py")) if path != SCHEMA]
    assert ("PoolPlacement", "resources") not in _defaults(SCHEMA)  # an empty table is not a plain value
    assert ("RouterSection", "refuse_late") in _defaults(SCHEMA)
    assert [(path.name, *field) for path in files for field in _defaults(path) if field[1] in keys] == []


def test_a_resolved_section_has_every_key_of_the_file() -> None:
    (engine,) = (section for section in sections() if section.name == "engine")
    assert {key.name for key in engine.keys} < set(ResolvedEngine.model_fields)


def test_a_changed_section_is_checked_as_the_file_is() -> None:
    assert GatewaySection().changed(port=1) == GatewaySection(port=1)
    for wrong in ({"prot": 1}, {"port": 70000}):
        with pytest.raises(ValidationError):
            GatewaySection().changed(**wrong)
