"""baton/protocol/v1 is up to date with the .proto files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = "baton/protocol/v1"


@pytest.mark.slow
def test_the_generated_code_equals_the_generators_output(tmp_path: Path) -> None:
    environment = {**os.environ, "BATON_PROTO_ENV": str(ROOT / ".venv-proto")}
    subprocess.run(
        [str(ROOT / "proto" / "generate.sh"), str(tmp_path)], check=True, capture_output=True, env=environment
    )
    made = sorted(path.name for path in (tmp_path / CODE).iterdir())
    kept = sorted(path.name for path in (ROOT / CODE).iterdir() if path.suffix in (".py", ".pyi"))
    assert made == [name for name in kept if name != "__init__.py"]
    for name in made:
        assert (tmp_path / CODE / name).read_text() == (ROOT / CODE / name).read_text(), name
