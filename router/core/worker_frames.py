"""Validates worker frames before the core acts on them.

A frame is accepted whole or not at all: `check` raises at the first invalid value. The core checks whether a worker
was ever assigned a request that it reports on (`LiveRequest.assignees`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baton.protocol import messages
from baton.protocol.errors import InvalidRequest
from baton.protocol.handoff import HandoffReport, Reservation
from baton.protocol.messages import DetachedSequence, TokenOutput, WorkerMessage
from baton.protocol.prefix_hash import HASH_BYTES
from baton.protocol.request import DIGEST_BYTES, MAX_LOGPROBS
from baton.protocol.worker import PageLayout, StepSample, WorkerInfo, WorkerLoad
from baton.router.policy.cluster_state import ClusterState

MAX_NAME = 256
MAX_ID = 1024
MAX_TEXT = 1 << 16
MAX_METADATA_BYTES = 4 << 20
MAX_PAGES = 1 << 26
MAX_HASHES = 1 << 22  # a message may list all changes of pages since the one before
MAX_TOKENS_PER_STEP = 1 << 16
MAX_IDS = 1 << 16
MAX_SAMPLES = 1 << 14
MAX_COUNT = 1 << 48
MAX_SECONDS = 1e6
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class WorkerFrames:
    """The checks, with the router's facts about the model."""

    model_id: str
    vocab_size: int
    context_tokens: int

    def check(self, worker: str, incarnation: str, batch: Iterable[WorkerMessage], state: ClusterState) -> None:
        """Raise `InvalidRequest` unless every value in a worker's frame is valid."""
        _expect(len(incarnation) <= MAX_ID, "invalid incarnation id")
        _expect(0 < len(worker) <= MAX_NAME and worker.isprintable(), "invalid worker name")
        view = state.workers.get(worker)
        info = view.info if view is not None and view.info.incarnation == incarnation else None
        for message in batch:
            if isinstance(message, messages.Register):
                self._check_info(worker, message.info)
                _check_held(message.held)
                info = message.info
            elif info is not None:  # the core ignores unknown workers
                self._check(worker, info, message)

    def _check(self, worker: str, info: WorkerInfo, message: WorkerMessage) -> None:
        match message:
            case messages.StepOutput(tokens):
                _expect(len(tokens) <= MAX_TOKENS_PER_STEP, "a step has too many tokens")
                for token in tokens:
                    if not self._is_plain(token):
                        self._check_token(token)
            case messages.Reserved(reservation):
                self._check_reservation(info, reservation)
            case messages.ReservationRefused(reservation_id, request_id, reason):
                _check_texts((reservation_id, request_id), reason)
            case messages.HandoffEnded(request_id, reservation_id, _, report, reason):
                _check_texts((reservation_id, request_id), reason)
                _check_report(report)
            case messages.HandoffCorrupt(request_id, reservation_id, wrong):
                _check_texts((reservation_id, request_id))
                _check_counts(wrong)
            case messages.HandoffStalled(request_id, reservation_id):
                _check_texts((reservation_id, request_id))
            case messages.HandoffCommitted(request_id, reservation_id):
                _check_texts((reservation_id, request_id))
            case messages.LinkMeasured(agent, num_bytes, seconds):
                _check_texts((agent,))
                _check_counts(num_bytes)
                _check_seconds(seconds)
                _expect(seconds > 0.0, "a write took no time")
            case messages.RequestFailed(request_id, error, text):
                _check_texts((request_id, error), text)
            case messages.LoadReport(load):
                _expect(load.worker == worker, "it reports the load of another worker")
                _check_load(info, load)
            case messages.PagesChanged(number, stored, evicted):
                _check_counts(number)
                _expect(len(stored) + len(evicted) <= MAX_HASHES, "it lists too many pages")
                _expect(all(len(one) == HASH_BYTES for one in stored), "a page's hash has another length")
                _expect(all(len(one) == HASH_BYTES for one in evicted), "a page's hash has another length")
            case messages.RoleChanged(_, epoch, error):
                _check_counts(epoch)
                _check_texts((), error)
            case messages.Goodbye(reason):
                _check_texts((), reason)

    def _check_info(self, worker: str, info: WorkerInfo) -> None:
        _expect(info.name == worker, "it registers another worker than its sender")
        endpoint, layout = info.endpoint, info.endpoint.layout
        said = (info.incarnation, endpoint.agent, info.host, info.device)
        _check_texts(said)
        _expect(all(text.isprintable() for text in said), "a text of its worker has characters that no log may show")
        _check_layout(layout)
        _expect(layout.model_id == self.model_id, "its model is not the router's")
        _expect(len(endpoint.metadata) <= MAX_METADATA_BYTES, "its transport metadata is too long")
        _check_counts(info.role_epoch, info.mixed_chunk_tokens, info.pid, endpoint.device_id)
        _expect(info.chunk_tokens > 0 and info.max_batch > 0, "its worker computes nothing in a step")

    def _is_plain(self, token: TokenOutput) -> bool:
        """The common case: all checks of `_check_token` in one expression, because it runs per token."""
        return (
            0 <= token.index < self.context_tokens
            and 0 <= token.token_id < self.vocab_size
            and 0 <= token.cached_tokens <= self.context_tokens
            and token.logprob is None
            and not token.top_logprobs
            and len(token.request_id) <= MAX_ID
        )

    def _check_token(self, token: TokenOutput) -> None:
        _expect(len(token.request_id) <= MAX_ID, "an id is too long")
        _expect(0 <= token.index < self.context_tokens, "a token's index is outside the context")
        _expect(0 <= token.token_id < self.vocab_size, "a token is outside the vocabulary")
        _expect(0 <= token.cached_tokens <= self.context_tokens, "more tokens were cached than the context holds")
        _expect(token.logprob is None or token.logprob <= 0.0 or token.logprob < 1e-3, "log-probability out of range")
        if token.top_logprobs:
            _expect(len(token.top_logprobs) <= MAX_LOGPROBS, "a token has too many log-probabilities")
            _expect(
                all(0 <= one < self.vocab_size for one, _ in token.top_logprobs), "a token is outside the vocabulary"
            )

    def _check_reservation(self, info: WorkerInfo, reservation: Reservation) -> None:
        pages = reservation.page_ids
        _check_texts((reservation.reservation_id, reservation.request_id))
        _expect(reservation.agent == info.endpoint.agent, "it reserves pages of another worker")
        _expect(len(set(pages)) == len(pages), "it reserves a page twice")
        _expect(all(0 <= page < info.num_pages for page in pages), "it reserves a page that its worker does not have")
        _expect(len(reservation.generations) == len(pages), "its pages and their generations do not match")
        _check_counts(reservation.cached_pages, reservation.known_tokens, *reservation.generations)
        _expect(reservation.cached_pages <= info.num_pages, "more pages were cached than its worker has")
        _expect(reservation.known_tokens <= self.context_tokens, "more tokens are known than the context holds")


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise InvalidRequest(f"{otherwise}.")


def _check_texts(ids: Iterable[str], text: str = "") -> None:
    _expect(all(len(one) <= MAX_ID for one in ids), "an id is too long")
    _expect(len(text) <= MAX_TEXT, "a text is too long")


def _check_counts(*counts: int) -> None:
    _expect(all(0 <= count <= MAX_COUNT for count in counts), "a count is negative or beyond all measure")


def _check_seconds(*durations: float) -> None:
    _expect(all(math.isfinite(one) and 0.0 <= one <= MAX_SECONDS for one in durations), "a duration is out of range")


def _check_held(held: Sequence[DetachedSequence]) -> None:
    _expect(len(held) <= MAX_IDS, "it holds too many sequences")
    for one in held:
        _check_texts((one.request_id,))
        _expect(len(one.digest) == DIGEST_BYTES, "a request's digest has another length")
        _check_counts(one.num_tokens, one.limit_tokens)


def _check_report(report: HandoffReport) -> None:
    _check_counts(report.pages_sent, report.pages_cached, report.bytes_sent)
    _check_seconds(report.transfer_s, report.exposed_s)


def _check_layout(layout: PageLayout) -> None:
    shape = (layout.num_pages, layout.num_layers, layout.page_size, layout.num_kv_heads, layout.head_dim)
    _expect(
        all(0 < size <= MAX_PAGES for size in shape) and layout.page_size <= 1 << 16, "its pages have no sane shape"
    )
    _expect(layout.dtype in DTYPES, "its pages hold values of an unknown type")


def _check_load(info: WorkerInfo, load: WorkerLoad) -> None:
    _check_counts(load.role_epoch, load.sequence_number, load.running, load.waiting)
    _check_counts(load.swapped, load.swap_outs, load.recomputes)
    _check_counts(load.pages_free, load.pages_cached, load.pending_prefill_tokens, load.context_tokens)
    _expect(load.pages_free + load.pages_cached <= load.pages_total == info.num_pages, "its pages do not add up")
    _expect(len(load.request_ids) <= MAX_IDS and len(load.reservation_ids) <= MAX_IDS, "it lists too many requests")
    _check_texts(load.request_ids)
    _check_texts(load.reservation_ids)
    _expect(len(load.steps) <= MAX_SAMPLES, "it lists too many steps")
    for step in load.steps:
        _check_step(step)


def _check_step(step: StepSample) -> None:
    _check_counts(step.prefill_tokens, step.prefill_pairs, step.decodes, step.context_tokens)
    _check_seconds(step.seconds)
