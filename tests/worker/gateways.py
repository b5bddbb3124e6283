"""A gateway as a worker meets it, for schedules in any order: its links, its streams, and what its readers have."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.gateway_messages import AttachStreams, LinkUp, StepOutput, StreamPosition, TokenMessage, TokenOutput
from baton.protocol.session_messages import GatewayJoined
from tests.worker.sessions import token_at


@dataclass(eq=False)
class ModelGateway:
    """Checks each token that arrives: it is the request's, and no earlier one is missing since the last answer."""

    name: str
    incarnation: int = 1
    streams: dict[str, int] = field(default_factory=dict)  # Of its clients: how many tokens each has, without a gap
    arriving: list[TokenMessage] = field(default_factory=list)  # On their way from the worker
    leaving: list[AttachStreams] = field(default_factory=list)  # On their way to the worker
    up: bool = False
    full: bool = False  # It takes no frame
    asked: bool = False  # The worker has sent `LinkUp`, and has received no answer
    open: bool = False  # It has received one since the connection is up
    gaps: set[str] = field(default_factory=set)  # Streams whose tokens on their way may not be the next ones

    @property
    def joined(self) -> GatewayJoined:
        return GatewayJoined(self.name, str(self.incarnation), f"tcp://{self.name}:1")

    def send(self, message: TokenMessage) -> bool:
        """The worker sends a frame; returns whether the link takes it."""
        if self.full:
            self.asked = self.open = False
            return False
        if isinstance(message, LinkUp):
            assert self.up, "LinkUp without a connection"
            self.asked, self.open = True, False
        else:
            assert self.open, "tokens before AttachStreams"
            assert isinstance(message, StepOutput) and message.tokens
        self.arriving.append(message)
        return True

    def receive(self) -> None:
        """The next frame arrives."""
        message = self.arriving.pop(0)
        if isinstance(message, LinkUp):
            self.leaving.append(AttachStreams(tuple(StreamPosition(*stream) for stream in self.streams.items())))
            return
        assert isinstance(message, StepOutput)
        for token in message.tokens:
            self._show(token)

    def answer(self) -> AttachStreams:
        """The next `AttachStreams` arrives at the worker."""
        self.open = self.open or self.asked
        return self.leaving.pop(0)

    def ask(self, request_id: str) -> None:
        """Ask for the tokens of one stream that did not arrive."""
        self.leaving.append(AttachStreams((StreamPosition(request_id, self.streams[request_id]),)))

    def _show(self, token: TokenOutput) -> None:
        assert token.token_id == token_at(token.request_id, token.index)
        have = self.streams.get(token.request_id)
        if have is None or (token.request_id in self.gaps and token.index > have):
            return
        assert token.index <= have, f"{token.request_id}: {have} tokens, and then {token.index}"
        self.gaps.discard(token.request_id)
        self.streams[token.request_id] = max(have, token.index + 1)

    def break_link(self, lost: int) -> None:
        """The connection ends: the last `lost` frames from the worker and all to it do not arrive."""
        self.up = self.asked = self.open = False
        del self.arriving[max(0, len(self.arriving) - lost) :]
        self.leaving.clear()

    def restart(self) -> None:
        """The process ended, and another one has its name."""
        self.break_link(len(self.arriving))
        self.incarnation += 1
        self.streams.clear()
        self.gaps.clear()
        self.full = False
