"""Every model family by its architecture in config.json."""

from __future__ import annotations

from baton.engine.families import llama, mistral, qwen2, qwen3
from baton.engine.families.family import Family

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": llama.FAMILY,
    "MistralForCausalLM": mistral.FAMILY,
    "Qwen2ForCausalLM": qwen2.FAMILY,
    "Qwen3ForCausalLM": qwen3.FAMILY,
}
