"""Validates the frames of workers and gateways before the core acts on them.

A frame is accepted whole or not at all: `check` raises at the first invalid value. The codec has checked the bounds of
single fields (`baton.protocol.bounds`); here are the checks that compare fields, or need the router's facts about the
model and the sender. The core checks whether a worker was ever assigned a request that it reports on
(`LiveRequest.assignees`), and whether a request is the gateway's.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from baton.protocol import gateway_messages, messages, session_messages
from baton.protocol.bounds import MAX_ID
from baton.protocol.errors import InvalidRequest
from baton.protocol.gateway_messages import GatewayMessage, Submit
from baton.protocol.handoff import Reservation
from baton.protocol.messages import WorkerMessage
from baton.protocol.worker import WorkerInfo, WorkerLoad
from baton.router.policy.cluster_state import ClusterState

MAX_NAME = 256
_OF_BOTH = frozenset(typing.get_args(GatewayMessage)) & frozenset(typing.get_args(WorkerMessage))
_OF_GATEWAYS = frozenset(typing.get_args(GatewayMessage)) - _OF_BOTH


@dataclass(frozen=True, slots=True)
class PeerFrames:
    """The checks, with the router's facts about the model."""

    model_id: str
    context_tokens: int

    def check(
        self,
        peer: str,
        incarnation: str,
        batch: Iterable[WorkerMessage | GatewayMessage],
        state: ClusterState,
        gateways: Collection[str],
    ) -> None:
        """Raise `InvalidRequest` unless every value in a frame is valid; `gateways` are the registered ones."""
        _expect(len(incarnation) <= MAX_ID, "invalid incarnation id")
        _expect(0 < len(peer) <= MAX_NAME and peer.isprintable(), "invalid worker or gateway name")
        view = state.workers.get(peer)
        info = view.info if view is not None and view.info.incarnation == incarnation else None
        of_gateway = peer in gateways
        for message in batch:
            kind = type(message)
            if kind in _OF_GATEWAYS:
                _expect(view is None, f"a worker sends {kind.__name__}")
                of_gateway = True
                self._check_gateway(peer, incarnation, message)
            elif kind not in _OF_BOTH:
                _expect(not of_gateway, f"a gateway sends {kind.__name__}")
            if isinstance(message, session_messages.Register):
                info = message.info
                _expect(info.name == peer, "it registers another worker than its sender")
                _expect(info.endpoint.layout.model_id == self.model_id, "its model is not the router's")
            elif info is not None:  # the core ignores unknown workers
                self._check_worker(peer, info, message)

    def _check_gateway(self, gateway: str, incarnation: str, message: WorkerMessage | GatewayMessage) -> None:
        match message:
            case gateway_messages.RegisterGateway(info):
                true = info.name == gateway and info.incarnation == incarnation
                _expect(true, "it registers another gateway than its sender")
            case Submit():
                submit = message
                _expect(submit.request_id != "", "a request has no id")
                tokens = submit.num_prompt_tokens + submit.max_tokens
                _expect(tokens <= self.context_tokens, "a request is longer than the context")
                _expect(submit.num_emitted <= submit.max_tokens, "more tokens were emitted than the request may have")
                _expect(len(submit.page_keys) <= submit.num_prompt_tokens, "a request has more pages than tokens")
                submit.objectives.validate()
            case gateway_messages.EmittedTokens(num_emitted=count) | gateway_messages.StopRequest(num_tokens=count):
                _expect(count <= self.context_tokens, "more tokens were emitted than the context holds")

    def _check_worker(self, worker: str, info: WorkerInfo, message: WorkerMessage | GatewayMessage) -> None:
        match message:
            case messages.SequenceEnded(_, _, num_tokens):
                _expect(num_tokens <= self.context_tokens, "a sequence is longer than the context")
            case messages.Reserved(reservation):
                self._check_reservation(info, reservation)
            case session_messages.LoadReport(load):
                _check_load(worker, info, load)

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
