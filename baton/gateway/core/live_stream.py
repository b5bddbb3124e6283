"""One live stream of a gateway: what its client has seen, and what it needs next. Pure.

held ──► submitted ──last token──► complete ──the router's end, or a moment──► gone
             └──the router's end──► tokens missing ──they arrive──────────────────┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from baton.gateway.core.commands import ShowPrompt, ShowTokens, StreamEnd
from baton.gateway.core.detokenizer import Vocabulary
from baton.gateway.core.stream import OutputStream
from baton.metrics.values import Distribution
from baton.protocol.errors import (
    BatonError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NoRouter,
    Overloaded,
    error_from_name,
)
from baton.protocol.gateway_messages import (
    EmittedTokens,
    Placed,
    RequestEnded,
    StopRequest,
    Submit,
)
from baton.protocol.latency import Latency
from baton.protocol.messages import Work
from baton.protocol.prefix_hash import page_hashes, page_keys, tenant_root
from baton.protocol.request import Request


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts about the served model that a gateway needs."""

    model_id: str
    page_size: int
    vocab_size: int
    share_prefixes: bool = False  # Between tenants


@dataclass(slots=True, eq=False)
class LiveStream:
    """A request with its output so far.

    After the last token it waits a moment for the router's end, which has the route. After the router's end it waits
    for missing tokens.
    """

    request: Request
    digest: bytes  # Of the request
    output: OutputStream
    page_keys: tuple[int, ...]  # Of the prompt's full pages
    latency: Latency
    opened_s: float
    first_index: int  # Its reader gets tokens from this index on
    resumed: bool  # A router or a worker may have it already
    held: bool = False  # An earlier request of the same id has yet to end
    submitted: bool = False
    submission: int = -1  # Of the latest `Submit`, counted from 0
    placed: Placed | None = None
    router_end: RequestEnded | None = None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def num_tokens(self) -> int:
        """Output tokens so far."""
        return len(self.output.token_ids)

    def on_placed(self, placed: Placed, now: float) -> None:
        """The request has left the router's queue, for the first time or again."""
        self.placed = placed
        if self.latency.routed_s is None:
            self.latency.routed_s = now

    def on_tokens(self, count: int, now: float, gaps: Distribution) -> None:
        """So many tokens can be shown now. `gaps` gets the time since the earlier ones."""
        latency = self.latency
        if latency.last_token_s is not None:
            gaps.add(now - latency.last_token_s)
        latency.on_tokens(count, now)

    def submit(self, now: float, epoch_s: float) -> Submit:
        """The request with its output so far, for the router. `epoch_s`: the wall clock at our time 0."""
        request, resumed = self.request, self.resumed or self.submitted
        self.submitted, self.router_end = True, None
        self.submission += 1
        return Submit(
            request_id=request.request_id,
            digest=self.digest,
            num_prompt_tokens=len(request.prompt),
            max_tokens=request.sampling.max_tokens,
            page_keys=self.page_keys,
            work=self._work(),
            num_emitted=self.num_tokens,
            resumed=resumed,
            tenant=request.tenant,
            priority=request.priority,
            objectives=request.objectives,
            age_s=max(0.0, now - request.arrival_s),
            deadline_in_s=None if request.deadline_s is None else max(0.0, request.deadline_s - now),
            submission=self.submission,
            called_at_s=epoch_s + request.arrival_s,
        )

    def emitted(self) -> EmittedTokens:
        """The answer to `AskEmitted`. Early tokens are dropped, because they are computed again, too."""
        self.output.forget_early()
        return EmittedTokens(self.request_id, self._work(), self.num_tokens)

    def stop(self, error: BatonError | None = None) -> StopRequest:
        """The order to compute no more: the output is complete, or `error`."""
        name, message = (type(error).__name__, error.message) if error is not None else ("", "")
        return StopRequest(
            self.request_id, self.num_tokens, self.output.reason if error is None else None, name, message
        )

    def without_router(self, lost_s: float, grace_s: float, now: float) -> BatonError | None:
        """The error that ends the stream while the router is away, since `lost_s`: a stream that has begun goes on."""
        deadline_s = self.request.deadline_s
        if deadline_s is not None and now >= deadline_s:
            return DeadlineExceeded("The deadline passed before the answer was complete.")
        if self.latency.first_token_s is None and now - max(lost_s, self.opened_s) >= grace_s:
            return NoRouter(f"The gateway has had no connection to the router for {grace_s:g} s: retry later.")
        return None

    def replay(self, request: Request, resume_from: int) -> list[ShowPrompt | ShowTokens]:
        """Continue for another reader of the same request; shows its tokens so far, without log-probabilities.

        Those of the prompt are shown to a reader without tokens. Raises `InvalidRequest` if it is another request of
        the same id. A seed may differ, because an omitted one is drawn.
        """
        mine, other = self.request, request
        same = other.prompt == mine.prompt and other.tenant == mine.tenant
        if not same or replace(other.sampling, seed=mine.sampling.seed) != mine.sampling:
            raise InvalidRequest(
                f"Request id {request.request_id!r} is in use by another live request; choose another."
            )
        self.first_index = resume_from
        self.request = replace(mine, arrival_s=other.arrival_s, deadline_s=other.deadline_s)
        prompt = self.output.prompt if not resume_from else []
        tokens = OutputStream(request, self.output.vocabulary).resume(self.output.token_ids)[resume_from:]
        shown = [ShowTokens(request.request_id, tokens)] if tokens else []
        return [*(ShowPrompt(part) for part in prompt), *shown]

    def end(self, error: BatonError | None) -> StreamEnd:
        """The end for the client: that of the output if `error` is None."""
        report, placed = self.router_end, self.placed
        workers = report if report is not None else placed
        return StreamEnd(
            request_id=self.request_id,
            reason=self.output.reason if error is None else None,
            error=error,
            prompt_tokens=len(self.request.prompt),
            output_tokens=self.num_tokens,
            cached_tokens=self.output.cached_tokens,
            trailing_text=self.output.trailing_text,
            latency=self.latency,
            prefill_worker=workers.prefill_worker if workers is not None else "",
            decode_worker=workers.decode_worker if workers is not None else "",
            attempts=report.attempts if report is not None else 0,
            migrations=report.migrations if report is not None else 0,
            handoff=report.handoff if report is not None else None,
        )

    def _work(self) -> Work:
        return Work(self.request, tuple(self.output.token_ids))


def open_stream(
    request: Request, emitted: Sequence[int], resume_from: int, model: ModelFacts, words: Vocabulary | None, now: float
) -> LiveStream:
    """A stream for a client that has `resume_from` output tokens, and may have sent them as `emitted`.

    The last emitted token is computed again, because it may have been the end.
    """
    output = OutputStream(request, words)
    output.resume(emitted[:-1])
    uses_cache = request.sampling.prompt_logprobs is None  # Else no cached page shortens its prefill
    root = tenant_root(model.model_id, request.tenant, model.share_prefixes)
    return LiveStream(
        request=request,
        digest=request.digest,
        output=output,
        page_keys=page_keys(page_hashes(request.prompt, model.page_size, root)) if uses_cache else (),
        latency=Latency(request.arrival_s),
        opened_s=now,
        first_index=max(resume_from, len(emitted)),
        resumed=resume_from > 0 or bool(emitted),
    )


def error_of(end: RequestEnded) -> BatonError:
    """The error that the router reports."""
    error = error_from_name(end.error, end.message)
    if isinstance(error, Overloaded):
        error.retry_after_s = end.retry_after_s
    return error


def taken_over(request_id: str) -> Cancelled:
    """The error for an earlier reader of a stream that has another one now."""
    return Cancelled(f"Another client has taken over the stream of {request_id!r}.")
