"""A configuration that cannot be served is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.config.parse import parse_config
from baton.deploy.cluster import resolve_here
from baton.deploy.machine import machine_facts
from baton.protocol.errors import ConfigError, ModelError
from tests.checkpoints import build_checkpoint


def test_a_tokenizer_that_cannot_be_read_is_found_before_ray_starts(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path)
    config = parse_config("", {"model": {"path": str(folder)}})
    resolve_here(config)
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    with pytest.raises(ModelError, match=r"only tekken\.json"):
        resolve_here(config)


def test_ranks_among_which_the_model_cannot_be_divided_are_refused() -> None:
    for pool in ("decode", "mixed"):  # No mixed worker starts, but `baton scale` may add one
        with pytest.raises(ConfigError, match=r"cannot be divided among 3 ranks: .* can be 1, 2"):
            resolve_here(parse_config(f"[tensor_parallel]\n{pool} = 3"))
    fitting = resolve_here(parse_config("[tensor_parallel]\nprefill = 2\nmixed = 4"))
    assert fitting.settings["tensor_parallel"] == "prefill 2, decode 1 ranks per worker"


def test_paths_are_absolute_so_that_processes_with_other_working_folders_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_checkpoint(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    named = str(folder.relative_to(tmp_path))
    resolved = resolve_here(parse_config("", {"model": {"path": named}, "router": {"state_file": "learned.json"}}))
    assert resolved.model.path == str(folder)
    assert resolved.router_config("127.0.0.1").router.state_file == str(tmp_path / "learned.json")


def test_an_empty_ray_address_means_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, here in (("", True), ("auto", False)):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert machine_facts().all_workers_here is here
