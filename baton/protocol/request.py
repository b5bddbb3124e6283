"""A client's request: prompt, sampling parameters and latency objectives."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace
from enum import Enum
from hashlib import blake2b

from baton.protocol.errors import InvalidRequest, PromptTooLong

MAX_LOGPROBS = 20
MAX_OBJECTIVE_S = 1e6  # Larger ones would overflow the sums that forecasts are made of.
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_BIASES = 1024
DIGEST_BYTES = 16


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"  # End-of-sequence token, stop token id or stop string
    LENGTH = "length"  # max_tokens reached, or the model's context full


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How output tokens are chosen; the defaults are greedy decoding.

    The noise of a sampled token depends only on `seed` and the position in the sequence. In float32 a request therefore
    has the same tokens on any worker and in any batch. In 16-bit types logits round differently in other batches, so a
    near-tie may be decided otherwise (docs/architecture.md). The gateway replaces a `seed` of None.
    """

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: the whole vocabulary
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # Over prompt and output, as in transformers
    presence_penalty: float = 0.0  # Over the output
    frequency_penalty: float = 0.0  # Over the output
    seed: int | None = None
    max_tokens: int = 256
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: no log-probabilities; n: those of the token and of the n likeliest tokens
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, addend), ascending; before penalties and temperature
    include_stop_str_in_output: bool = False  # The stop string that ends the answer is part of its text
    prompt_logprobs: int | None = None  # As `logprobs`, of every prompt token but the first

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is chosen, without noise."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether logits depend on the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    def validate(self, vocab_size: int) -> None:
        """Raise `InvalidRequest` naming the first invalid parameter."""
        checks = [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_k", self.top_k, 0, 2**31 - 1),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, 1e-3, 1e3),
            ("presence_penalty", self.presence_penalty, -100.0, 100.0),
            ("frequency_penalty", self.frequency_penalty, -100.0, 100.0),
            ("max_tokens", self.max_tokens, 1, 2**31 - 1),
            ("min_tokens", self.min_tokens, 0, self.max_tokens),
            ("seed", self.seed or 0, -(2**63), 2**63 - 1),
            ("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS),
            ("prompt_logprobs", self.prompt_logprobs or 0, 0, MAX_LOGPROBS),
        ]
        for name, value, low, high in checks:
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidRequest(f"{name} is {value}: it must be between {low:g} and {high:g}.")
        if not (math.isfinite(self.top_p) and 0.0 < self.top_p <= 1.0):
            raise InvalidRequest(f"top_p is {self.top_p}: it must be above 0 and at most 1.")
        if len(self.stop) > MAX_STOP_STRINGS or len(self.stop_token_ids) > 1024:
            raise InvalidRequest(f"At most {MAX_STOP_STRINGS} stop strings and 1024 stop token ids are accepted.")
        for text in self.stop:
            if not 0 < len(text.encode()) <= MAX_STOP_BYTES:
                raise InvalidRequest(f"A stop string must have 1 to {MAX_STOP_BYTES} bytes.")
        for token in self.stop_token_ids:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(f"Stop token id {token} is outside the vocabulary of {vocab_size}.")
        self._check_bias(vocab_size)

    def _check_bias(self, vocab_size: int) -> None:
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidRequest(f"logit_bias has {len(self.logit_bias)} entries: at most {MAX_BIASES} are accepted.")
        for token, bias in self.logit_bias:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(f"logit_bias has token id {token}, outside the vocabulary of {vocab_size}.")
            if not -100.0 <= bias <= 100.0:
                raise InvalidRequest(f"logit_bias of token id {token} is {bias}: it must be between -100 and 100.")


@dataclass(frozen=True, slots=True)
class Objectives:
    """The client's latency objectives, in seconds; None: no objective."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def validate(self) -> None:
        """Raise `InvalidRequest` unless every objective is a positive number of seconds, at most MAX_OBJECTIVE_S."""
        for name, value in (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s)):
            if value is not None and not 0 < value <= MAX_OBJECTIVE_S:
                raise InvalidRequest(
                    f"The objective {name} is {value}: it must be above 0 and at most {MAX_OBJECTIVE_S:g} seconds."
                )


@dataclass(frozen=True, slots=True)
class Request:
    """One request in the cluster. `arrival_s` and `deadline_s` are times of its gateway's clock."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    arrival_s: float = 0.0
    deadline_s: float | None = None
    priority: int = 0
    tenant: str = ""
    objectives: Objectives = field(default_factory=Objectives)

    @property
    def max_total_tokens(self) -> int:
        """Maximum of prompt and output tokens together."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def digest(self) -> bytes:
        """A digest of the tenant and of everything that determines the tokens."""
        sampling = replace(self.sampling, seed=None) if self.sampling.greedy else self.sampling
        digest = blake2b(repr((self.tenant, len(self.prompt), sampling)).encode(), digest_size=DIGEST_BYTES)
        digest.update(array("q", self.prompt).tobytes())
        return digest.digest()

    def validate(self, vocab_size: int, context_tokens: int) -> None:
        """Raise `InvalidRequest` if the model cannot serve the request; the message names the part and the limit."""
        if not self.prompt:
            raise InvalidRequest("The prompt is empty: give at least one token.")
        if len(self.prompt) >= context_tokens:
            raise PromptTooLong(
                f"The prompt has {len(self.prompt)} tokens; the model's context holds {context_tokens}, "
                "and one of them must remain for the answer."
            )
        if min(self.prompt) < 0 or max(self.prompt) >= vocab_size:
            bad = next(token for token in self.prompt if not 0 <= token < vocab_size)
            raise InvalidRequest(f"Token id {bad} is outside the vocabulary of {vocab_size}.")
        self.sampling.validate(vocab_size)
        self.objectives.validate()
