"""Forms of the families in `tests.checkpoints` that are compared with transformers; docs/models.md lists them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from baton.engine.families.family import ROPES
from baton.engine.families.table import FAMILIES as SUPPORTED
from tests.checkpoints import FAMILIES


@dataclass(frozen=True)
class Variant:
    """A form of a family: its kind of rope, what else differs in its config.json, and the context that is served."""

    family: str
    rope: str = "default"
    settings: dict[str, Any] = field(default_factory=dict)  # Of the rope.
    options: dict[str, Any] = field(default_factory=dict)  # Of the configuration.
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


# Each kind of rope, for heads of 16 (longrope: of which each family's own head_dim makes the number of factors).
ROPE_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 5000.0},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": _YARN,
    "longrope": {"original_max_position_embeddings": 256, "factor": 2.0},
}


def every_rope() -> list[Variant]:
    """Each family with each kind of rope that it accepts."""
    forms = []
    for family, (name, options) in FAMILIES.items():
        accepted = SUPPORTED[f"{name}ForCausalLM"].rope_kinds.values()
        for rope in ROPES if family != "llama3" else ():
            settings = dict(ROPE_SETTINGS[rope])
            head_dim = options.get("head_dim", 16)
            context, top = 512, {"head_dim": head_dim}  # transformers' Mixtral needs it for some ropes.
            if rope == "longrope":
                context = settings["original_max_position_embeddings"]
                settings |= _longrope(head_dim // 2)
                top["original_max_position_embeddings"] = context
            if rope in accepted:
                forms.append(Variant(family, rope, settings, top, context=context))
    return forms


VARIANTS: dict[str, Variant] = {
    "llama, yarn": Variant("llama2", "yarn", {**_YARN, "attention_factor": 0.8}),
    "llama, longrope": Variant(
        "llama2", "longrope", _longrope(8, original_max_position_embeddings=200, factor=4.0), context=200
    ),
    "llama, biases": Variant("llama2", options=_BIASES),
    "granite, biases": Variant("granite", "yarn", _YARN, _BIASES),
    "mistral, yarn": Variant("mistral", "yarn", {**_YARN, "beta_fast": 16.0, "beta_slow": 0.5, "truncate": False}),
    "qwen2, yarn": Variant("qwen2", "yarn", {**_YARN, "factor": 8.0}, context=1024),
    "qwen3, yarn": Variant("qwen3", "yarn", {**_YARN, "mscale": 1.3, "mscale_all_dim": 0.7}),
    "qwen3, biases": Variant("qwen3", options={"attention_bias": True}),
    "qwen3-moe, biases": Variant("qwen3-moe", options={"attention_bias": True}),
    "phi3, longrope": Variant("phi3", "longrope", _longrope(8), {"original_max_position_embeddings": 256}, context=256),
    "phi4-mini": Variant(
        "phi3",
        "longrope",
        _longrope(6, partial_rotary_factor=0.75),
        {"original_max_position_embeddings": 256, "tie_word_embeddings": True},
        context=256,
    ),
    "phi3, partial": Variant("phi3", settings={"partial_rotary_factor": 0.5}),
    "smollm3, yarn": Variant("smollm3", "yarn", _YARN, {"no_rope_layers": None, "no_rope_layer_interval": 2}),
    "smollm3, biases": Variant("smollm3", options=_BIASES),
    "olmo2, llama3": Variant("olmo2", "llama3", ROPE_SETTINGS["llama3"]),
    "olmo2, biases": Variant("olmo2", options={"attention_bias": True}),
}
