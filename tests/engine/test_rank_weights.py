"""Each rank reads its part of the checkpoint and nothing else; degrees that a model does not fit are refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from baton.engine import weights
from baton.engine.checkpoint import read_config
from baton.engine.checkpoint_tensors import checkpoint_targets, parameter_shapes
from baton.engine.families.family import QkNorm
from baton.engine.model_config import ModelConfig, check_ranks, model_config
from baton.engine.ranks import OneRank
from baton.engine.weight_copier import pieces
from baton.engine.weights import load_weights
from baton.protocol.errors import ConfigError
from tests.checkpoints import build_checkpoint
from tests.engine.test_families import EXPERTS, SHORTEST


@dataclass(frozen=True)
class Place(OneRank):
    """One of several ranks that are never together."""

    num_ranks: int
    rank: int


def _config(architecture: str = "Qwen2ForCausalLM", **changes: Any) -> ModelConfig:
    raw = {"architectures": [architecture], **SHORTEST, **EXPERTS}
    return replace(model_config(raw), hidden_size=64, head_dim=4, **changes)


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("num_kv_heads", [8, 2, 1])
@pytest.mark.parametrize(
    ("family", "qkv_bias", "qk_norm"),
    [
        ("Qwen2", True, None),
        ("Qwen2", False, "head"),
        ("Qwen2", False, "projection"),
        ("Mixtral", False, None),
        ("Qwen2Moe", True, None),
    ],
)
def test_the_parts_fill_each_rank_and_together_are_the_checkpoint(
    num_ranks: int, num_kv_heads: int, family: str, qkv_bias: bool, qk_norm: QkNorm | None
) -> None:
    sizes = {"vocab_size": 321, "num_heads": 16, "num_kv_heads": num_kv_heads, "intermediate_size": 128}
    config = _config(f"{family}ForCausalLM", **sizes, qkv_bias=qkv_bias, qk_norm=qk_norm)
    seen: dict[str, torch.Tensor] = {}
    for rank in range(num_ranks):
        shapes = parameter_shapes(config.slice(num_ranks, rank))
        filled = {name: torch.zeros(shape) for name, shape in shapes.items()}
        for name, target in checkpoint_targets(config, num_ranks, rank).items():
            whole = seen.setdefault(name, torch.zeros(target.shape))
            for start, part in target.parts:
                whole[part] += 1
                place = filled[target.parameter][start : start + len(whole[part])]
                assert place.shape == whole[part].shape
                place += 1
            assert target.num_values == sum(whole[part].numel() for _, part in target.parts)
        vocabulary = config.vocabulary(num_ranks, rank)
        for name, values in filled.items():
            used = values[: len(vocabulary)] if name in ("embed", "head") else values
            assert (used == 1).all(), name
    copies = max(num_ranks // num_kv_heads, 1)
    for name, count in seen.items():
        replicated = "norm" in name and not (qk_norm == "projection" and "self_attn" in name)
        replicated = replicated or name.endswith((".gate.weight", "shared_expert_gate.weight"))
        of_kv_heads = any(part in name for part in ("k_proj", "v_proj", "k_norm"))
        expected = num_ranks if replicated else copies if of_kv_heads else 1
        assert (count == expected).all(), name


def test_a_small_vocabulary_leaves_a_rank_with_padding_only() -> None:
    parts = [_config(vocab_size=5).vocabulary(4, rank) for rank in range(4)]
    assert parts == [range(2), range(2, 4), range(4, 5), range(5, 5)]
    assert {_config(vocab_size=5).slice(4, rank).vocab_size for rank in range(4)} == {2}


@pytest.mark.parametrize("tied", [True, False])
def test_a_rank_reads_its_slices_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    build_checkpoint(tmp_path, "qwen2", vocab_size=321, tie_word_embeddings=tied)
    config, tensors = read_config(tmp_path), load_file(tmp_path / "model.safetensors")
    taken: list[int] = []
    parts = weights._parts

    def counted(*arguments: Any) -> Any:
        for parameter, start, part in parts(*arguments):
            taken.append(part.numel())
            yield parameter, start, part

    monkeypatch.setattr(weights, "_parts", counted)
    whole = load_weights(tmp_path, config, torch.float32)
    size_of_all, taken[:] = sum(taken), []
    assert size_of_all == sum(tensor.numel() for tensor in tensors.values())
    progress: list[tuple[int, int]] = []
    for rank in range(4):
        got = load_weights(
            tmp_path, config, torch.float32, progress=lambda *done: progress.append(done), ranks=Place(4, rank)
        )
        padding = 0 if rank < 3 else (1 if tied else 2) * 3 * config.hidden_size
        assert sum(taken) == sum(tensor.numel() for tensor in got.values()) - padding < 0.4 * size_of_all
        assert progress[-1] == (4 * sum(taken), 4 * sum(taken))
        taken[:] = []
        expected = torch.cat((whole["embed"], torch.zeros(3, config.hidden_size))).chunk(4)[rank]
        assert torch.equal(got["embed"], expected)
        assert torch.equal(got["0.out"], whole["0.out"].chunk(4, dim=1)[rank])
        assert torch.equal(got["0.down"], whole["0.down"].chunk(4, dim=1)[rank])
        assert torch.equal(got["0.gate_up"], torch.cat([half.chunk(4)[rank] for half in whole["0.gate_up"].chunk(2)]))
        assert torch.equal(got["norm"], whole["norm"])


@pytest.mark.parametrize("part", [(slice(3, 9),), (slice(0, 40), slice(5, 15)), (slice(0, 0),)])
@pytest.mark.parametrize("piece_bytes", [40, 100, 1 << 20])
def test_a_part_is_copied_in_pieces_that_fit_a_buffer(part: tuple[slice, ...], piece_bytes: int) -> None:
    source = torch.arange(800.0).view(40, 20)[part]
    target = torch.zeros(source.shape, dtype=torch.float64)
    for piece, place in pieces(source, target, piece_bytes):
        assert piece.nbytes <= piece_bytes
        place.copy_(piece)
    assert torch.equal(target, source.double())


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8, 16])
def test_degrees_that_fit_are_accepted(num_ranks: int) -> None:
    check_ranks(_config(num_heads=16, num_kv_heads=4, intermediate_size=160), num_ranks)


@pytest.mark.parametrize(
    ("sizes", "num_ranks", "refusal"),
    [
        ((12, 4, 96), 5, r"The model's 12 attention heads cannot be divided among 5 ranks: .* can be 1, 2, 4, 12\."),
        ((12, 4, 96), 3, r"The model's 4 KV heads cannot be divided among 3 ranks: .* can be 1, 2, 4, 12\."),
        (
            (8, 8, 44),
            8,
            r"The model's 44 columns of the MLP \(intermediate_size\) cannot .* 8 ranks: .* 1, 2, 4\.",
        ),
    ],
)
def test_a_degree_that_does_not_fit_is_refused_with_those_that_do(
    sizes: tuple[int, int, int], num_ranks: int, refusal: str
) -> None:
    heads, kv_heads, intermediate = sizes
    with pytest.raises(ConfigError, match=refusal):
        check_ranks(_config(num_heads=heads, num_kv_heads=kv_heads, intermediate_size=intermediate), num_ranks)
