"""Scaling: which workers are added or removed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.deploy.running import RunningCluster, claim_note, running_cluster
from baton.deploy.scale import leaving, new_names, scale
from baton.protocol.errors import ConfigError


def test_new_workers_take_the_first_free_names() -> None:
    assert new_names("decode", 3, ["decode-0", "decode-2", "prefill-1"]) == ["decode-1", "decode-3", "decode-4"]


def test_the_newest_workers_are_removed_first() -> None:
    pools = {"prefill": ["decode-12"], "decode": [f"decode-{index}" for index in range(12)]}
    assert leaving("decode", 3, pools) == ["decode-11", "decode-10", "decode-9"]


def test_no_more_workers_can_be_removed_than_exist() -> None:
    with pytest.raises(ConfigError, match="Cannot remove 2 from the prefill pool: it has 1"):
        leaving("prefill", 2, {"prefill": ["prefill-0"], "decode": ["decode-0"]})
    with pytest.raises(ConfigError, match="Cannot remove 1 from the mixed pool: it has 0"):
        leaving("mixed", 1, {"prefill": ["prefill-0"], "decode": ["decode-0"]})


def test_a_worker_that_decodes_must_stay() -> None:
    with pytest.raises(ConfigError, match="No decode worker would be left"):
        leaving("decode", 1, {"prefill": ["prefill-0"], "decode": ["decode-0"]})
    assert leaving("decode", 1, {"decode": ["decode-0"], "mixed": ["mixed-0"]}) == ["decode-0"]
    assert leaving("prefill", 1, {"prefill": ["decode-0"], "decode": ["prefill-0"]}) == ["decode-0"]


def test_scaling_needs_a_cluster_and_a_pool_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="No cluster is running"):
        scale("decode", 1, {}, lambda names: None, lambda name, stage: None)
    with pytest.raises(ConfigError, match="no pool 'decoder'"):
        scale("decoder", 1, {}, lambda names: None, lambda name, stage: None)


def test_the_note_of_a_cluster_is_read_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_HOME", str(tmp_path / "home"))
    assert running_cluster() is None
    cluster = RunningCluster(
        *("127.0.0.1:1", ("decode-0",), "auto", ""),
        gateway_addresses=("127.0.0.1:1", "127.0.0.2:1"),
        worker_address="tcp://127.0.0.1:2",
        admin_address="127.0.0.1:3",
        resolved={"dtype": "float32"},
    )
    claim_note(cluster)
    assert running_cluster() == cluster
