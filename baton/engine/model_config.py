"""Translates a config.json into the shapes and switches of the one decoder that Baton has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from baton.engine.experts_config import Experts, read_experts
from baton.engine.families.family import QkNorm, Scales
from baton.engine.families.table import FAMILIES
from baton.engine.fp8 import Fp8, read_fp8
from baton.engine.race.definition import MAX_TOKEN
from baton.engine.rope_config import Rope, positive, read_rope
from baton.protocol.errors import ConfigError, ModelError
from baton.protocol.head_slices import heads_of
from baton.protocol.worker import PageLayout

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "context_tokens",
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and switches of one model."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_tokens: int
    context_limit: str  # What limits the context, if it is not the number of positions.
    norm_eps: float
    rope: Rope
    unrotated_layers: Collection[int]  # Those that do not rotate queries and keys.
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: QkNorm | None
    norms_after: bool  # Of the outputs of attention and MLP, not of their inputs.
    scales: Scales
    tied_head: bool
    eos_token_ids: frozenset[int]
    experts: Experts | None = None
    fp8: Fp8 | None = None  # The form of weights that are stored in FP8.

    @property
    def dense_layers(self) -> int:
        """The number of layers with a dense MLP."""
        return self.num_layers - (len(self.experts.layers) if self.experts else 0)

    @property
    def qkv_size(self) -> int:
        """Rows of the fused matrix of queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Number of weights of the matrices and the embedding."""
        attention = self.hidden_size * (self.qkv_size + self.num_heads * self.head_dim)
        mlps = 3 * self.hidden_size * self.intermediate_size * self.dense_layers
        if self.experts is not None:
            mlps += self.experts.parameters(self.hidden_size) * len(self.experts.layers)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_head else 2)
        return self.num_layers * attention + mlps + embeddings

    @property
    def layer_values(self) -> int:
        """The numbers that a layer computes for a token, at most."""
        dense = 3 * self.intermediate_size if self.dense_layers else 0
        experts = 0 if self.experts is None else self.experts.values(self.hidden_size)
        return 2 * self.hidden_size + self.qkv_size + max(dense, experts)

    def slice(self, num_ranks: int, rank: int) -> ModelConfig:
        """The shapes of one rank: its heads, its columns of the MLP, and its rows of embedding and head.

        An uneven vocabulary is padded, so that all ranks have equally many rows; `vocabulary` has the rank's tokens.
        """
        return replace(
            self,
            vocab_size=-(-self.vocab_size // num_ranks),
            intermediate_size=self.intermediate_size // num_ranks,
            num_heads=self.num_heads // num_ranks,
            num_kv_heads=len(heads_of(self.num_kv_heads, num_ranks, rank)),
            experts=None if self.experts is None else self.experts.slice(num_ranks),
        )

    def vocabulary(self, num_ranks: int, rank: int) -> range:
        """The token ids whose rows of embedding and head a rank keeps; none, for a rank that has only padding."""
        rows = -(-self.vocab_size // num_ranks)
        return range(min(rank * rows, self.vocab_size), min((rank + 1) * rows, self.vocab_size))

    def page_layout(self, num_pages: int, page_size: int, dtype: str, model_id: str) -> PageLayout:
        """The layout of this model's KV pages."""
        return PageLayout(num_pages, self.num_layers, page_size, self.num_kv_heads, self.head_dim, dtype, model_id)


def check_ranks(config: ModelConfig, num_ranks: int) -> None:
    """Raise `ConfigError`, with the numbers that would fit, when the model cannot be divided among so many ranks."""
    if _misfit(config, num_ranks) is None:
        return
    fitting = [str(number) for number in range(1, config.num_heads + 1) if _misfit(config, number) is None]
    raise ConfigError(
        f"{_misfit(config, num_ranks)} cannot be divided among {num_ranks} ranks: tensor parallelism of this model "
        f"can be {', '.join(fitting)}."
    )


def _misfit(config: ModelConfig, num_ranks: int) -> str | None:
    """The number of the model that does not fit, if there is any. Fewer KV heads than ranks are copied."""
    kv_heads = config.num_kv_heads
    if config.num_heads % num_ranks:
        return f"The model's {config.num_heads} attention heads"
    if kv_heads % num_ranks and num_ranks % kv_heads:
        return f"The model's {kv_heads} KV heads"
    if config.dense_layers and config.intermediate_size % num_ranks:
        return f"The model's {config.intermediate_size} columns of the MLP (intermediate_size)"
    experts = config.experts
    for size in () if experts is None else (experts.intermediate_size, experts.shared_intermediate_size):
        if size % num_ranks:
            return f"The model's {size} columns of an expert"
    return None


def model_config(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
    """Read config.json (and generation_config.json, for its end-of-sequence tokens).

    Raises `ModelError` naming an architecture or option that is not supported, or a key that is missing.
    """
    architectures = raw.get("architectures") or ["(none)"]
    architecture = architectures[0]
    family = FAMILIES.get(architecture)
    if family is None:
        raise ModelError(f"The architecture {architecture} is not supported; supported are {', '.join(FAMILIES)}.")
    raw = {**family.left_out, **raw}
    _refuse_options(raw, architecture)
    try:
        num_heads, hidden_size = raw["num_attention_heads"], raw["hidden_size"]
        head_dim = raw.get("head_dim") or hidden_size // num_heads
        rope = read_rope(raw, head_dim, family.rope_theta, family.rope_kinds, family.partial_rotary)
        context, limit = _context(rope, family.window(raw))
        attention_bias = bool(family.attention_bias and raw.get("attention_bias"))
        config = ModelConfig(
            architecture=architecture,
            vocab_size=raw["vocab_size"],
            hidden_size=hidden_size,
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=raw.get("num_key_value_heads") or num_heads,
            head_dim=head_dim,
            context_tokens=context,
            context_limit=limit,
            norm_eps=raw["rms_norm_eps"],
            rope=rope,
            unrotated_layers=family.unrotated_layers(raw),
            qkv_bias=bool(family.qkv_bias and raw.get("qkv_bias", True)) or attention_bias,
            out_bias=attention_bias,
            mlp_bias=bool(family.mlp_bias and raw.get("mlp_bias")),
            qk_norm=family.qk_norm,
            norms_after=family.norms_after,
            scales=family.scales(raw),
            tied_head=bool(raw["tie_word_embeddings"]),
            eos_token_ids=frozenset(token for token in _eos(raw) | _eos(generation or {}) if token < raw["vocab_size"]),
            experts=None if family.experts is None else read_experts(raw, family.experts),
            fp8=read_fp8(raw),
        )
    except KeyError as error:
        raise ModelError(f"config.json lacks the key {error}.") from None
    _check_numbers(config)
    return config


def _check_numbers(config: ModelConfig) -> None:
    for name in _SIZES:
        value = getattr(config, name)
        if type(value) is not int or not 0 < value < 2**31:
            raise ModelError(f"config.json gives {value!r} for {name}: it must be a positive whole number.")
    positive(config.norm_eps)
    for name in ("embedding", "residual", "attention", "logits"):
        if (scale := getattr(config.scales, name)) is not None:
            positive(scale)


def _context(rope: Rope, window: int | None) -> tuple[int, str]:
    """The longest sequence that is served, and what limits it."""
    if window is not None and window < rope.context_tokens:
        return window, "the sliding window"
    return rope.context_tokens, rope.limit


def _refuse_options(raw: Mapping[str, Any], architecture: str) -> None:
    if raw["hidden_act"] not in ("silu", "swish"):
        raise ModelError(f"The activation {raw['hidden_act']} is not supported, only silu (which is also swish).")
    if any(not 0 <= token < raw.get("vocab_size", token + 1) for token in _eos(raw)):
        raise ModelError("config.json names an eos_token_id outside the vocabulary.")
    if raw.get("vocab_size", 0) > MAX_TOKEN + 1:
        raise ModelError(
            f"config.json has a vocabulary of {raw['vocab_size']} tokens; at most {MAX_TOKEN + 1} are served."
        )
    family = FAMILIES[architecture]
    for key, known in (("attention_bias", family.attention_bias), ("mlp_bias", family.mlp_bias)):
        if raw.get(key) and not known:
            raise ModelError(f"{architecture} with {key} is not supported.")


def _eos(raw: Mapping[str, Any]) -> frozenset[int]:
    value = raw.get("eos_token_id")
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])
