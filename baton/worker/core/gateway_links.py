"""A worker's links to gateways: when tokens may be sent, and what is reported to the router. Pure.

        up: LinkUp            AttachStreams
down ─────────────► asking ─────────────────► open
 ▲ ▲                 │  ▲                      │ │ a frame is not taken
 │ └──────down───────┘  └──tick: LinkUp── full ◄─┘
 └──────────────────down────────────────────┴──┘
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from baton.protocol.gateway_messages import AttachStreams, LinkUp
from baton.protocol.session_messages import GatewayJoined, GatewayLeft, GatewayUnreachable
from baton.worker.core.role import Command, Send, SendToGateway
from baton.worker.core.session_commands import ConnectGateway, DisconnectGateway
from baton.worker.core.token_streams import TokenStreams

GATEWAY_GRACE_S = 2.0  # How long a link may be down before it is reported to the router
FORGET_S = 60.0  # How long a link may be down whose gateway this router has not named
RETRY_S, RETRY_MOST_S = 0.05, 1.0  # How often to send `LinkUp` until it is taken and answered: this often, then slower


class LinkState(Enum):
    DOWN = 1
    FULL = 2  # It took no more frames: tokens are lost until `LinkUp` is sent
    ASKING = 3  # `LinkUp` was sent
    OPEN = 4


LinkCommand = Command | ConnectGateway | DisconnectGateway


@dataclass(slots=True, eq=False)
class _Link:
    joined: GatewayJoined
    since_s: float  # When it went down
    due_s: float = 0.0  # When to send the next `LinkUp`
    wait_s: float = RETRY_S  # After that one
    state: LinkState = LinkState.DOWN
    reported: bool = False  # As unreachable
    confirmed: bool = True  # This router has named the gateway

    def unreachable(self, reachable: bool = False) -> GatewayUnreachable:
        """The report that the gateway is out of reach, or (`reachable`) no more."""
        return GatewayUnreachable(self.joined.gateway, self.joined.incarnation, reachable)


@dataclass(eq=False)
class GatewayLinks:
    """One link to each gateway that the router has named. Tokens flow while it is OPEN, and at no other time."""

    worker: str
    streams: TokenStreams
    incarnation: str = ""
    _links: dict[str, _Link] = field(default_factory=dict)

    def state(self, gateway: str) -> LinkState | None:
        """None: there is no link to this gateway."""
        link = self._links.get(gateway)
        return link.state if link is not None else None

    def on_new_router(self) -> None:
        """The router will name its gateways."""
        for link in self._links.values():
            link.confirmed = False

    def unreachable(self) -> list[GatewayUnreachable]:
        """Reports for a router that has just registered the worker."""
        return [link.unreachable() for link in self._links.values() if link.reported]

    def on_joined(self, joined: GatewayJoined, now: float) -> list[LinkCommand]:
        """A gateway, or a new incarnation of one."""
        link = self._links.get(joined.gateway)
        if link is not None and link.joined == joined:
            link.confirmed = True
            return [Send(link.unreachable())] if link.reported else []
        commands = self._drop(joined.gateway) if link is not None else []
        self._links[joined.gateway] = _Link(joined, now)
        return [*commands, ConnectGateway(joined)]

    def on_left(self, left: GatewayLeft) -> list[LinkCommand]:
        """Sequences of the gateway keep decoding; another one may adopt them."""
        link = self._links.get(left.gateway)
        return self._drop(left.gateway) if link is not None and link.joined.incarnation == left.incarnation else []

    def on_link(self, gateway: str, up: bool, now: float) -> list[LinkCommand]:
        """The connection is established, or has ended."""
        link = self._links.get(gateway)
        if link is None:
            return []
        self.streams.close(gateway)
        if up:
            link.wait_s = RETRY_S
            return self._ask(gateway, link, now)
        if link.state is not LinkState.DOWN:
            link.state, link.since_s = LinkState.DOWN, now
        return []

    def on_attach(self, gateway: str, message: AttachStreams) -> list[LinkCommand]:
        """The answer to `LinkUp`, or the gateway asks for tokens that did not arrive."""
        link = self._links.get(gateway)
        if link is None or link.state not in (LinkState.ASKING, LinkState.OPEN):
            return []
        link.state, reported, link.reported = LinkState.OPEN, link.reported, False
        commands: list[LinkCommand] = [Send(link.unreachable(reachable=True))] if reported else []
        return [*commands, *self.streams.attach(gateway, message.streams)]

    def on_full(self, gateway: str, now: float) -> None:
        """A frame was not taken: its tokens are lost."""
        link = self._links.get(gateway)
        if link is not None and link.state is not LinkState.DOWN:
            self.streams.close(gateway)
            link.state, link.due_s, link.wait_s = LinkState.FULL, now + RETRY_S, RETRY_S

    def tick(self, now: float) -> list[LinkCommand]:
        """What is due."""
        commands: list[LinkCommand] = []
        for gateway, link in list(self._links.items()):
            if link.state is LinkState.DOWN:
                commands += self._while_down(gateway, link, now - link.since_s)
            elif link.state is not LinkState.OPEN and now >= link.due_s:
                commands += self._ask(gateway, link, now)
        return commands

    def _while_down(self, gateway: str, link: _Link, down_s: float) -> list[LinkCommand]:
        if not link.confirmed and down_s >= FORGET_S:
            return self._drop(gateway)
        if link.reported or down_s < GATEWAY_GRACE_S:
            return []
        link.reported = True
        return [Send(link.unreachable())]

    def wait_s(self, now: float) -> float:
        """Time until `tick` has something to do."""
        dues = [self._due_s(link) for link in self._links.values()]
        return max(0.0, min(dues, default=float("inf")) - now)

    def _due_s(self, link: _Link) -> float:
        if link.state is LinkState.DOWN:
            return float("inf") if link.reported else link.since_s + GATEWAY_GRACE_S
        return float("inf") if link.state is LinkState.OPEN else link.due_s

    def _ask(self, gateway: str, link: _Link, now: float) -> list[LinkCommand]:
        link.state, link.due_s, link.wait_s = LinkState.ASKING, now + link.wait_s, min(2 * link.wait_s, RETRY_MOST_S)
        return [SendToGateway(gateway, LinkUp(self.worker, self.incarnation))]

    def _drop(self, gateway: str) -> list[LinkCommand]:
        self.streams.close(gateway)
        del self._links[gateway]
        return [DisconnectGateway(gateway)]
