"""What cannot be served is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import parse_config
from cluster.errors import ModelError
from deploy.cluster import resolve_here
from tests.checkpoints import build_checkpoint


def test_a_tokenizer_that_cannot_be_read_is_found_before_ray_starts(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path)
    config = parse_config("", {"model": {"path": str(folder)}})
    resolve_here(config)
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    with pytest.raises(ModelError, match=r"only tekken\.json"):
        resolve_here(config)
