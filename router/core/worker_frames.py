"""Validates worker frames before the core acts on them.

A frame is accepted whole or not at all: `check` raises at the first invalid value. The codec has checked the bounds of
single fields (`baton.protocol.bounds`); here are the checks that compare fields, or need the router's facts about the
model and the sender. The core checks whether a worker was ever assigned a request that it reports on
(`LiveRequest.assignees`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from baton.protocol import messages
from baton.protocol.bounds import MAX_ID
from baton.protocol.errors import InvalidRequest
from baton.protocol.handoff import Reservation
from baton.protocol.messages import TokenOutput, WorkerMessage
from baton.protocol.request import MAX_LOGPROBS
from baton.protocol.worker import WorkerInfo, WorkerLoad
from baton.router.policy.cluster_state import ClusterState

MAX_NAME = 256
MAX_TOKENS_PER_STEP = 1 << 16


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
                info = message.info
                _expect(info.name == worker, "it registers another worker than its sender")
                _expect(info.endpoint.layout.model_id == self.model_id, "its model is not the router's")
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
            case messages.LoadReport(load):
                _check_load(worker, info, load)

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
        _expect(reservation.agent == info.endpoint.agent, "it reserves pages of another worker")
        _expect(len(set(pages)) == len(pages), "it reserves a page twice")
        _expect(all(0 <= page < info.num_pages for page in pages), "it reserves a page that its worker does not have")
        _expect(len(reservation.generations) == len(pages), "its pages and their generations do not match")
        _expect(reservation.cached_pages <= info.num_pages, "more pages were cached than its worker has")
        _expect(reservation.known_tokens <= self.context_tokens, "more tokens are known than the context holds")


def _check_load(worker: str, info: WorkerInfo, load: WorkerLoad) -> None:
    _expect(load.worker == worker, "it reports the load of another worker")
    _expect(load.pages_free + load.pages_cached <= load.pages_total == info.num_pages, "its pages do not add up")


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise InvalidRequest(f"{otherwise}.")
