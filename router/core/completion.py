"""The end of a request, as its client and the explanations get it."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.errors import BatonError
from baton.protocol.handoff import HandoffReport
from baton.protocol.request import FinishReason
from baton.router.core.latency import Latency


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a request: `reason` for an answer, `error` for a failure."""

    request_id: str
    reason: FinishReason | None
    error: BatonError | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    trailing_text: str
    latency: Latency
    prefill_worker: str
    decode_worker: str
    attempts: int
    migrations: int
    handoff: HandoffReport | None
