"""A checkpoint that cannot be served is refused with one sentence that names the problem."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as FastTokenizer

from baton.config.parse import parse_config
from baton.deploy.cluster import resolve_here
from baton.engine.checkpoint import check_weights, model_id, read_config, resolve_model
from baton.engine.tokenizer import Tokenizer
from baton.engine.weights import load_weights
from baton.protocol.errors import ModelError
from tests.checkpoints import build_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_checkpoint(tmp_path)


def _edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _load(folder: Path) -> None:
    load_weights(folder, read_config(folder), torch.float32)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq, 4 bits\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes, 8 bits"),
        ({"quantization": {"group_size": 64}}, "of a kind that config.json does not name"),
        ({"architectures": ["MistralForCausalLM"], "attention_bias": True}, "attention_bias"),
        ({"architectures": ["Qwen3ForCausalLM"], "mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"eos_token_id": 400}, "eos_token_id"),
        ({"rope_parameters": {"rope_type": "mrope", "factor": 4}}, "mrope"),
    ],
)
def test_an_unsupported_option_is_named(folder: Path, changes: dict[str, Any], word: str) -> None:
    _edit_config(folder, **changes)
    with pytest.raises(ModelError, match=word):
        read_config(folder)


def test_a_missing_key_is_named(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    del raw["vocab_size"]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="vocab_size"):
        read_config(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        _load(folder)


def test_an_unknown_tensor_is_named(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    with pytest.raises(ModelError, match="surprise"):
        _load(folder)


def test_a_layer_number_of_thousands_of_digits_is_refused(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: tensors.update({f"model.layers.{'9' * 5000}.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match="does not use"):
        _load(folder)


def test_a_wrong_shape_is_named(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight has shape \[3\] instead of \[64\]"):
        _load(folder)


@pytest.mark.parametrize(("dtype", "word"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_a_quantised_tensor_is_named_before_memory_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, word: str
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    _edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    taken: list[object] = []
    monkeypatch.setattr(torch, "empty", lambda *shape, **_: taken.append(shape))
    for check in (_load, lambda folder: check_weights(folder, read_config(folder))):
        with pytest.raises(ModelError, match=rf"The tensor {re.escape(name)} is of type {word}"):
            check(folder)
    assert not taken


def test_a_checkpoint_that_cannot_be_served_is_refused_before_anything_is_started(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    _edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(ModelError, match=f"{re.escape(name)} is of type I8"):
        resolve_here(parse_config(overrides={"model": {"path": str(folder)}}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_plain_type_is_read_with_its_values(folder: Path, dtype: torch.dtype) -> None:
    _edit_weights(folder, lambda tensors: tensors.update({name: one.to(dtype) for name, one in tensors.items()}))
    norm = load_file(folder / "model.safetensors")["model.norm.weight"]
    assert torch.equal(load_weights(folder, read_config(folder), torch.float32)["norm"], norm.float())


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, max_shard_size="100KB")
    first, *_, last = sorted(folder.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(last), name: tensor}, last)
    with pytest.raises(ModelError, match=f"{re.escape(name)} is in the checkpoint twice"):
        _load(folder)


def test_a_file_that_is_not_safetensors_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        _load(folder)


def test_a_missing_folder_is_reported() -> None:
    with pytest.raises(ModelError, match="does not exist"):
        resolve_model("/no/such/folder")


def test_an_unreadable_tokenizer_is_reported(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer"):
        Tokenizer(folder)


def test_other_weights_are_another_model(folder: Path) -> None:
    before = model_id(folder)
    assert model_id(folder) == before
    for name in sorted(load_file(folder / "model.safetensors")):
        _edit_weights(folder, lambda tensors, name=name: tensors[name].add_(1))
        assert model_id(folder) != before, name
        before = model_id(folder)


def test_truncation_and_padding_in_the_tokenizer_are_for_training_only(folder: Path) -> None:
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.enable_truncation(8)
    fast.enable_padding(length=64)
    fast.save(str(folder / "tokenizer.json"))
    assert [len(Tokenizer(folder).encode("x" * length)) for length in (3, 100)] == [3, 100]


def test_progress_reaches_the_end(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_weights(folder, read_config(folder), torch.float32, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_the_tokenizer_round_trips_text(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    for text in ("plain", "größer 中文 🙂", " leading and trailing "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.max_token_bytes >= 1
