"""The model that a gateway serves, as far as clients see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.engine.model_config import ModelConfig
from baton.engine.tokenizer import Tokenizer
from baton.gateway.chat_template import ChatTemplate
from baton.protocol.sampling import SamplingDefaults


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The facts of the model that a gateway needs; it loads no weights."""

    name: str
    model_id: str
    config: ModelConfig
    tokenizer: Tokenizer
    dtype: str
    context_tokens: int
    sampling_defaults: SamplingDefaults = field(default_factory=dict)  # The model's, for parameters a request omits
    template: ChatTemplate | None = None
