"""The router's state of one live request, and the completion for its client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from baton.protocol.errors import BatonError, DeadlineExceeded, InvalidRequest, WorkerLost
from baton.protocol.handoff import HandoffReport
from baton.protocol.prefix_hash import page_hashes, tenant_root
from baton.protocol.request import FinishReason, Request
from baton.router.core.effects import End
from baton.router.core.latency import Latency
from baton.router.core.life_events import Stopped
from baton.router.core.lifecycle import Life, lifecycle
from baton.router.core.stream import OutputStream, TextToken
from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.output_length import OutputLength, Prediction, chain_nodes
from baton.router.policy.placement import PlacementInput
from baton.router.policy.prefix_index import page_keys


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


@dataclass(slots=True, eq=False)
class LiveRequest:
    """One live request. It leaves the router when its life cycle stops, which may be after the client is gone."""

    request: Request
    life: Life
    stream: OutputStream
    latency: Latency
    page_keys: tuple[int, ...]  # of the prompt's full pages
    prediction: Prediction  # of its output length
    prefill_worker: str = ""
    decode_worker: str = ""
    attempts: int = 0
    resumed: tuple[int, ...] = ()  # output before the present attempt: prefilled with the prompt
    prefilling: bool = False  # its prompt counts as work of the prefill worker
    sequence: RunningSequence | None = None  # what the ledger expects to decode
    closed: bool = False  # the client's stream has ended
    reservation_id: str = ""  # for which the decode worker expects the sequence
    reserved_on: dict[str, str] = field(default_factory=dict)  # reservation id → worker
    holders: set[str] = field(default_factory=set)  # workers that may hold something for it
    assignees: set[str] = field(default_factory=set)  # workers ever assigned part of it: their messages about it count
    decoding: bool = False  # the decode worker runs it
    committed_id: str = ""  # the reservation whose pages it runs on; empty where it was computed
    migrating: bool = False  # a migration away from the decode worker is in progress
    migrating_to: str = ""  # the target, once pages were requested there
    migrations: int = 0
    stays_until_s: float = 0.0  # a migration has failed: the next is not tried before
    continued: bool = False  # it was running when the router started

    @property
    def request_id(self) -> str:
        return self.request.request_id

    def replay(self, request: Request) -> list[TextToken]:
        """The streamed tokens, for a repeat of the same request.

        Raises `InvalidRequest` if it is another one of the same id, `WorkerLost` (try again) while it is ending.
        """
        mine, other = self.request.sampling, request.sampling
        if request.prompt != self.request.prompt or replace(other, seed=mine.seed) != mine:
            raise InvalidRequest(
                f"Request id {request.request_id!r} is in use by another live request; choose another."
            )
        if self.closed:
            raise WorkerLost(f"Request {request.request_id!r} is ending; retry in a moment.")
        again = OutputStream(request, self.stream.vocabulary)
        return again.resume(self.stream.token_ids)

    def may_move(self, now: float) -> bool:
        """Whether a migration could start now."""
        return self.decoding and not self.migrating and not self.closed and now >= self.stays_until_s

    def on_tokens(self, count: int, now: float) -> None:
        """`count` more tokens went to the client."""
        self.latency.on_tokens(count, now)
        if self.sequence is not None:
            self.sequence.emitted += count

    @property
    def placement_input(self) -> PlacementInput:
        """The placement input of the request now."""
        request, emitted = self.request, len(self.stream.token_ids)
        return PlacementInput(
            request_id=request.request_id,
            num_tokens=len(request.prompt) + emitted,
            page_keys=self.page_keys,
            output=self.prediction.distribution,
            objectives=request.objectives,
            arrival_s=self.latency.arrival_s,
            priority=request.priority,
            tenant=request.tenant,
            resumed=self.attempts > 0,
            prefill_worker=self.prefill_worker,
            total_tokens=request.max_total_tokens,
        )

    def complete(self, end: End) -> Completion:
        return Completion(
            request_id=self.request_id,
            reason=end.reason,
            error=end.error,
            prompt_tokens=len(self.request.prompt),
            output_tokens=len(self.stream.token_ids),
            cached_tokens=self.stream.cached_tokens,
            trailing_text=self.stream.trailing_text,
            latency=self.latency,
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
            attempts=self.attempts,
            migrations=self.migrations,
            handoff=end.report,
        )


def name_pages(request: Request, state: ClusterState) -> tuple[int, ...]:
    """The keys of a prompt's full pages; all workers have the same model and page size."""
    view = next(iter(state.workers.values()), None)
    if view is None:
        return ()
    layout = view.info.endpoint.layout
    root = tenant_root(layout.model_id, request.tenant, state.share_prefixes)
    return page_keys(page_hashes(request.prompt, layout.page_size, root))


def open_request(
    request: Request, stream: OutputStream, state: ClusterState, output_length: OutputLength, now: float
) -> LiveRequest:
    """A request as it enters the router: its pages named, its output predicted.

    Without a worker the page size is unknown: pages are named when one registers.
    """
    keys = name_pages(request, state)
    nodes = chain_nodes(keys, next(iter(state.workers.values())).info.page_size) if keys else ()
    prediction = output_length.predict(nodes, request.tenant, len(request.prompt), request.sampling.max_tokens)
    return LiveRequest(request, lifecycle(request.request_id), stream, Latency(now), keys, prediction)


def overdue(records: Iterable[LiveRequest], now: float) -> list[tuple[str, Stopped]]:
    """A `Stopped` event for every request whose deadline has passed while its client waits."""
    error = DeadlineExceeded("The deadline passed before the answer was complete.")
    return [
        (record.request_id, Stopped(None, error))
        for record in records
        if record.request.deadline_s is not None and now >= record.request.deadline_s and not record.closed
    ]
