"""The facts about a machine and a model from which a configuration is resolved. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.config.memory import Free
from baton.protocol.sampling import SamplingDefaults


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """The resources of the machine, for all its workers together."""

    cores: int
    memory_available_bytes: int
    fast_bfloat16: bool  # avx512_bf16 or AMX: bfloat16 matrix products at twice the rate of float32
    memory_limit_bytes: int = 0  # The container's limit, if it bounds the available memory; 0: none
    all_workers_here: bool = True  # False: workers may run on nodes with more or less memory

    @property
    def free(self) -> Free:
        """The available memory."""
        return Free(self.memory_available_bytes, self.memory_limit_bytes)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model's facts that determine sizes.

    `kv_values_per_token` counts K and V of all layers; `layer_values` counts the numbers that one layer computes for a
    token.
    """

    path: str
    name: str
    context_tokens: int
    kv_values_per_token: int
    sampling: SamplingDefaults = field(default_factory=dict)  # From its generation_config.json
    num_parameters: int = 0
    layer_values: int = 0
    vocab_size: int = 0
    num_kv_heads: int = 1
    template_text: str = ""  # The text of the template that the operator gives; "": the model's own
    context_limit: str = ""  # What limits `context_tokens`, if it is not the number of positions

    def page_bytes(self, page_size: int, dtype: str, ranks: int) -> int:
        """Bytes of a page on all ranks of a worker; with fewer KV heads than ranks, several ranks keep each head."""
        copies = max(1, ranks // self.num_kv_heads)
        return copies * page_size * self.kv_values_per_token * (4 if dtype == "float32" else 2)
