"""The workers that a gateway accepts, and the tokens that it misses from them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from baton.gateway.core.commands import ShowPrompt
from baton.gateway.core.live_stream import LiveStream
from baton.gateway.core.stream import TextToken
from baton.protocol.bounds import MAX_IDS
from baton.protocol.gateway_messages import LinkUp, ServingPools, StepOutput, TokenMessage, TokenOutput
from baton.protocol.prompt_logprobs import PromptLogprobs

GAP_S = 0.2  # After which the missing tokens count as lost
ASK_AGAIN_S = 1.0
CONFIRM_S = 60.0  # After a registration


@dataclass(slots=True)
class _Gap:
    worker: str
    ask_s: float


@dataclass(slots=True, eq=False)
class Workers:
    """The workers that the router has named, and the streams that have later tokens without the next one."""

    vocab_size: int
    invalid_tokens: int = 0  # Outside the vocabulary
    refused_tokens: int = 0  # From other workers
    pools: ServingPools = field(default_factory=ServingPools)  # As the router last sent it
    _named: set[str] = field(default_factory=set)
    _early_links: set[str] = field(default_factory=set)  # Workers that connected before the router named them
    _unconfirmed: set[str] = field(default_factory=set)  # Named by an earlier router or registration only
    _confirm_by_s: float = 0.0
    _gaps: dict[str, _Gap] = field(default_factory=dict)  # By request id

    def __contains__(self, worker: str) -> bool:
        return worker in self._named

    @property
    def num_named(self) -> int:
        """Workers that the router has named."""
        return len(self._named)

    @property
    def num_gaps(self) -> int:
        """Streams that have a gap."""
        return len(self._gaps)

    def join(self, worker: str) -> bool:
        """The router names a worker; whether it has connected and waits for `AttachStreams`."""
        self._named.add(worker)
        self._unconfirmed.discard(worker)
        waits = worker in self._early_links
        self._early_links.discard(worker)
        return waits

    def leave(self, worker: str) -> None:
        """Accept nothing more from a worker."""
        self._named.discard(worker)
        self._unconfirmed.discard(worker)
        self._early_links.discard(worker)

    def on_registered(self, now: float) -> None:
        """The router names its workers again; a restarted one does so as they come."""
        self._unconfirmed, self._confirm_by_s = set(self._named), now + CONFIRM_S

    def stale(self, now: float) -> list[str]:
        """Workers that the router has not named again in time; they are accepted no more."""
        stale = sorted(self._unconfirmed) if now >= self._confirm_by_s else []
        for worker in stale:
            self.leave(worker)
        return stale

    def refuse(self, worker: str, batch: Iterable[TokenMessage]) -> None:
        """Messages of a worker that the router has not named; only its connection is noted."""
        for message in batch:
            if isinstance(message, StepOutput):
                self.refused_tokens += len(message.tokens)
            elif isinstance(message, LinkUp) and len(self._early_links) < MAX_IDS:
                self._early_links.add(worker)

    def take(
        self,
        worker: str,
        outputs: Iterable[TokenOutput],
        streams: Mapping[str, LiveStream],
        shown: dict[str, list[TextToken]],
        now: float,
    ) -> None:
        """Add the tokens of one step to their streams, and to `shown`, by request id, those that can be shown now.

        Called once per step: it takes about a microsecond per token.
        """
        vocab_size, gaps = self.vocab_size, self._gaps
        for output in outputs:
            stream = streams.get(output.request_id)
            if stream is None or stream.held:
                continue
            if not 0 <= output.token_id < vocab_size:
                self.invalid_tokens += 1
                continue
            tokens = stream.output.accept(output)
            if tokens:
                known = shown.get(output.request_id)
                if known is None:
                    shown[output.request_id] = tokens
                else:
                    known += tokens
                if gaps:
                    self.close_gap(output.request_id)
            if stream.output.has_gap:
                self._open_gap(output.request_id, worker, now)

    def take_prompt(
        self, part: PromptLogprobs, streams: Mapping[str, LiveStream], shown: dict[str, list[TextToken]]
    ) -> list[ShowPrompt]:
        """Add log-probabilities of a prompt to its stream, and to `shown` the tokens that waited for them."""
        stream = streams.get(part.request_id)
        if stream is None or stream.held:
            return []
        if not part.belongs_to(stream.request, self.vocab_size):
            self.invalid_tokens += len(part)
            return []
        new = stream.output.accept_prompt(part)
        tokens = stream.output.after_prompt() if new is not None else []
        if tokens:
            shown[part.request_id] = tokens
            self.close_gap(part.request_id)
        return [ShowPrompt(new)] if new is not None and not stream.first_index else []

    def close_gap(self, request_id: str) -> None:
        """The stream's next token came, or none is needed any more."""
        self._gaps.pop(request_id, None)

    def due(self, now: float) -> dict[str, list[str]]:
        """The ids of streams whose missing tokens are asked for now, by worker."""
        ids: dict[str, list[str]] = {}
        for request_id, gap in self._gaps.items():
            if now >= gap.ask_s:
                gap.ask_s = now + ASK_AGAIN_S
                if gap.worker in self._named:
                    ids.setdefault(gap.worker, []).append(request_id)
        return ids

    def _open_gap(self, request_id: str, worker: str, now: float) -> None:
        """A token of a stream came early; the missing ones are asked from the worker that sent the latest."""
        gap = self._gaps.get(request_id)
        if gap is None:
            self._gaps[request_id] = _Gap(worker, now + GAP_S)
        else:
            gap.worker = worker
