"""Experts: the sum over a token's experts, in a fixed order, whatever the tokens beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from baton.engine.experts_config import Experts
from baton.engine.model_config import check_ranks, model_config
from baton.engine.models import experts as experts_module
from baton.engine.models.experts import ExpertsMlp, grouped_linear
from baton.protocol.errors import ConfigError, ModelError
from tests.engine.test_families import EXPERTS, SHORTEST

HIDDEN = 32
SHAPE = Experts(7, 3, 16, 24, normalised=True, layers=frozenset((0,)))


def _parameters(dtype: torch.dtype, shape: Experts = SHAPE) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "router": (shape.count, HIDDEN),
        "experts_gate_up": (shape.count * 2 * shape.intermediate_size, HIDDEN),
        "experts_down": (shape.count * HIDDEN, shape.intermediate_size),
        "shared_gate": (1, HIDDEN),
        "shared_gate_up": (2 * shape.shared_intermediate_size, HIDDEN),
        "shared_down": (HIDDEN, shape.shared_intermediate_size),
    }
    return {
        name: torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype) for name, size in shapes.items()
    }


def _rows(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(count), dtype=torch.float64).to(dtype)


def _mlp(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate, up = (gate_up @ x).chunk(2)
    return down @ (F.silu(gate) * up)


def _by_token(x: torch.Tensor, parameters: dict[str, torch.Tensor], shape: Experts) -> torch.Tensor:
    """The definition, one token and one expert at a time."""
    gate_up, down = parameters["experts_gate_up"].chunk(shape.count), parameters["experts_down"].chunk(shape.count)
    outputs = []
    for row in x:
        weights, chosen = (parameters["router"] @ row).softmax(0).topk(shape.per_token)
        weights = weights / weights.sum() if shape.normalised else weights
        total = sum(w * _mlp(row, gate_up[e], down[e]) for w, e in zip(weights, chosen.tolist(), strict=True))
        if shape.shared_intermediate_size:
            shared = _mlp(row, parameters["shared_gate_up"], parameters["shared_down"])
            total = total + torch.sigmoid(parameters["shared_gate"] @ row) * shared
        outputs.append(total)
    return torch.stack(outputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("shared", [24, 0])
@pytest.mark.parametrize("tokens", [1, 5, 90])
def test_the_output_is_the_weighted_sum_over_the_experts_of_each_token(
    tokens: int, shared: int, normalised: bool
) -> None:
    shape = replace(SHAPE, shared_intermediate_size=shared, normalised=normalised)
    parameters, x = _parameters(torch.float64, shape), _rows(tokens, torch.float64)
    expected = _by_token(x, parameters, shape)
    assert torch.allclose(ExpertsMlp(shape, parameters)(x.clone()), expected, rtol=1e-12, atol=1e-12)
    single = ExpertsMlp(shape, {name: value.float() for name, value in parameters.items()})
    assert torch.allclose(single(x.float()).double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tokens_sum_does_not_depend_on_the_tokens_beside_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Bit for bit where a product's rows are: here each row is multiplied alone."""

    def alone(x: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        groups = torch.searchsorted(ends, torch.arange(len(x)), right=True)
        return torch.stack([F.linear(row, weights[group]) for row, group in zip(x, groups, strict=True)])

    monkeypatch.setattr(experts_module, "grouped_linear", alone)
    x, mlp = _rows(40, dtype), ExpertsMlp(SHAPE, _parameters(dtype))
    weights, chosen = mlp.choice(x)
    together = mlp.chosen_sum(x, weights, chosen)
    for token in range(40):
        own = slice(token, token + 1)
        assert torch.equal(mlp.chosen_sum(x[own], weights[own], chosen[own]), together[own])
    backwards = torch.arange(39, -1, -1)
    assert torch.equal(mlp.chosen_sum(x[backwards], weights[backwards], chosen[backwards]), together[backwards])


@pytest.mark.parametrize("width", [16, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_group_of_rows_is_multiplied_with_its_matrix(dtype: torch.dtype, width: int) -> None:
    """Also with groups without rows, rows that are not aligned, and strided ones."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 2 * width, generator=generator).to(dtype)[:, :width]
    weights = torch.randn(5, 8, width, generator=generator).to(dtype)
    got = grouped_linear(x, weights, torch.tensor([0, 4, 4, 8, 9], dtype=torch.int32))
    groups = [1, 1, 1, 1, 3, 3, 3, 3, 4]
    expected = torch.stack([weights[group].double() @ row.double() for row, group in zip(x, groups, strict=True)])
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 1e-1
    assert torch.allclose(got.double(), expected, atol=tolerance)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"num_experts_per_tok": 7}, "gives each token 7 of 6 experts"),
        ({"num_experts": -1}, "-1 for num_experts: it must be a positive"),
        ({"moe_intermediate_size": 8.5}, "8.5 for moe_intermediate_size"),
        ({"shared_expert_intermediate_size": 0}, "0 for shared_expert_intermediate_size"),
        ({"decoder_sparse_step": 0}, "0 for decoder_sparse_step"),
    ],
)
def test_impossible_numbers_of_experts_are_refused(changes: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ModelError, match=refusal):
        model_config({"architectures": ["Qwen2MoeForCausalLM"], **SHORTEST, **EXPERTS, **changes})


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"decoder_sparse_step": 2}, {1, 3}),
        ({"mlp_only_layers": [0, 3]}, {1, 2, 4}),
        ({"num_experts": 0}, None),
        ({"decoder_sparse_step": 9}, None),
    ],
)
def test_layers_are_dense_where_the_config_says_so(changes: dict[str, Any], layers: set[int] | None) -> None:
    raw = {"architectures": ["Qwen2MoeForCausalLM"], **SHORTEST, **EXPERTS, "num_hidden_layers": 5, **changes}
    config = model_config(raw)
    assert (config.experts.layers if config.experts else None) == layers
    assert config.dense_layers == 5 - len(layers or ())


def test_a_degree_that_does_not_divide_the_experts_is_refused() -> None:
    raw = {"architectures": ["Qwen3MoeForCausalLM"], **SHORTEST, **EXPERTS, "moe_intermediate_size": 36}
    check_ranks(model_config(raw), 4)
    with pytest.raises(ConfigError, match=r"36 columns of an expert cannot be divided among 8 ranks: .* 1, 2, 4\."):
        check_ranks(model_config({**raw, "num_key_value_heads": 8}), 8)


def test_all_experts_are_counted() -> None:
    """Qwen1.5-MoE-A2.7B: 60 experts of 3 × 2048 × 1408, a shared one of 3 × 2048 × 5632, both routers, attention."""
    layer = 60 * 3 * 2048 * 1408 + 3 * 2048 * 5632 + 61 * 2048 + 4 * 2048 * 2048
    sizes = {"hidden_size": 2048, "num_hidden_layers": 24, "vocab_size": 151936, "num_attention_heads": 16}
    experts = {"num_experts": 60, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}
    config = model_config({"architectures": ["Qwen2MoeForCausalLM"], **SHORTEST, **EXPERTS, **sizes, **experts})
    assert config.num_parameters == 24 * layer + 2 * 151936 * 2048 == 14_315_536_384
