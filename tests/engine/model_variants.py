"""Forms of the families in `tests.checkpoints` that are compared with transformers; docs/models.md lists them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A form of a family: its kind of rope, what else differs in its config.json, and the context that is served."""

    family: str
    rope: str = "default"
    settings: dict[str, Any] = field(default_factory=dict)  # Of the rope.
    options: dict[str, Any] = field(default_factory=dict)  # Of the configuration.
    words: str = ""  # The options, for the table.
    context: int = 512

    @property
    def overrides(self) -> dict[str, Any]:
        """Arguments of `build_checkpoint`."""
        rope = {"rope_parameters": {"rope_type": self.rope, "rope_theta": 10_000.0, **self.settings}}
        return {**(rope if self.settings else {}), **self.options}


_YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
_BIASES = {"attention_bias": True, "mlp_bias": True}


def _longrope(pairs: int, **settings: Any) -> dict[str, Any]:
    """Unequal factors for each pair of values; the long ones would change every logit."""
    short = [1.0 + 0.25 * index for index in range(pairs)]
    return {"short_factor": short, "long_factor": [3.0 * factor for factor in short], **settings}


VARIANTS: dict[str, Variant] = {
    "llama, linear": Variant("llama2", "linear", {"factor": 4.0}),
    "llama, dynamic": Variant("llama2", "dynamic", {"factor": 4.0}),
    "llama, yarn": Variant("llama2", "yarn", {**_YARN, "attention_factor": 0.8}),
    "llama, longrope": Variant(
        "llama2", "longrope", _longrope(8, original_max_position_embeddings=200, factor=4.0), context=200
    ),
    "llama, biases": Variant("llama2", options=_BIASES, words="attention_bias and mlp_bias"),
    "mistral, yarn": Variant("mistral", "yarn", {**_YARN, "beta_fast": 16.0, "beta_slow": 0.5, "truncate": False}),
    "qwen2, yarn": Variant("qwen2", "yarn", {**_YARN, "factor": 8.0}, context=1024),
    "qwen2, linear": Variant("qwen2", "linear", {"factor": 2.0}),
    "qwen3, yarn": Variant("qwen3", "yarn", {**_YARN, "mscale": 1.3, "mscale_all_dim": 0.7}),
    "qwen3, dynamic": Variant("qwen3", "dynamic", {"factor": 2.0}),
    "qwen3, biases": Variant("qwen3", options={"attention_bias": True}, words="attention_bias"),
    "phi3, longrope": Variant("phi3", "longrope", _longrope(8), {"original_max_position_embeddings": 256}, context=256),
    "phi4-mini": Variant(
        "phi3",
        "longrope",
        _longrope(6, partial_rotary_factor=0.75),
        {"original_max_position_embeddings": 256, "tie_word_embeddings": True},
        "three quarters of each head rotated",
        context=256,
    ),
    "phi3, partial": Variant("phi3", settings={"partial_rotary_factor": 0.5}, words="half of each head rotated"),
    "smollm3, yarn": Variant("smollm3", "yarn", _YARN, {"no_rope_layers": None, "no_rope_layer_interval": 2}),
    "smollm3, biases": Variant("smollm3", options=_BIASES, words="attention_bias and mlp_bias"),
    "olmo2, llama3": Variant(
        "olmo2",
        "llama3",
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "olmo2, biases": Variant("olmo2", options={"attention_bias": True}, words="attention_bias"),
}
