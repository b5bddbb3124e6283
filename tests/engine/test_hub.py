"""Downloads from a hub repository: one copy of the weights, and none of a model that cannot be served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from baton.engine.checkpoint import resolve_model, weight_files
from baton.protocol.errors import ModelError
from tests.checkpoints import build_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHERS = (
    "consolidated.safetensors",
    "consolidated-00001-of-00002.safetensors",
    "consolidated.safetensors.index.json",
    "onnx/model.safetensors",
    "original/model-00001-of-00002.safetensors",
    "pytorch_model.bin",
    "tekken.json",
    "README.md",
)


class Hub:
    """A repository on disk, read like `snapshot_download`: its own filter chooses the files."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.snapshot = repository, cache / COMMIT
        self.revisions: list[str | None] = []

    def download(self, repo_id: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        self.revisions.append(revision)
        paths = [path for path in self.repository.rglob("*") if path.is_file()]
        names = [path.relative_to(self.repository).as_posix() for path in paths]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (self.snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / name, self.snapshot / name)
        return str(self.snapshot)

    @property
    def fetched_weights(self) -> set[str]:
        return {path.relative_to(self.snapshot).as_posix() for path in self.snapshot.rglob("*.safetensors")}


@pytest.fixture(params=["50GB", "100KB"], ids=["whole", "sharded"])
def hub(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Hub:
    repository = build_checkpoint(tmp_path / "repository", max_shard_size=request.param)
    for name in OTHERS:
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("{}")
    hub = Hub(repository, tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    return hub


def test_the_weights_come_once(hub: Hub) -> None:
    folder = resolve_model("mistralai/a-model")
    assert hub.fetched_weights == {path.name for path in weight_files(hub.repository)}
    assert (folder / "tokenizer.json").is_file()
    assert hub.revisions == [None, COMMIT]  # config and weights are of one commit


def test_shards_are_fetched_by_their_names_in_the_index(hub: Hub) -> None:
    index = hub.repository / "model.safetensors.index.json"
    names = [path.name for path in weight_files(hub.repository)]
    for name in names:
        (hub.repository / name).rename(hub.repository / f"part-{name}")
    index.write_text(json.dumps({"weight_map": {name: f"part-{name}" for name in names}}))
    assert hub.fetched_weights == set()
    resolve_model("someone/a-model")
    assert hub.fetched_weights == {f"part-{name}" for name in names}


def test_a_model_that_is_not_supported_is_refused_before_its_weights_come(hub: Hub) -> None:
    config = json.loads((hub.repository / "config.json").read_text())
    (hub.repository / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ModelError, match="GPT2LMHeadModel"):
        resolve_model("someone/a-model")
    assert hub.fetched_weights == set()
