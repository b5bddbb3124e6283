"""What a session asks its shell to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.protocol.session_messages import GatewayJoined
from baton.protocol.worker import Endpoint
from baton.worker.core.role import SendToGateway, SwapIn, SwapOut, WritePages


@dataclass(frozen=True, slots=True)
class Connect:
    """Prepare transfers to a peer; if it cannot be reached, each write to it fails."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the connection to a peer; its unfinished writes end with an error."""

    agent: str


@dataclass(frozen=True, slots=True)
class NewTransport:
    """Close the transport, on which no write is in flight, and open one of this name: `on_transport` follows.

    Steps may go on in between, since sequences that are kept need no transport.
    """

    agent: str


@dataclass(frozen=True, slots=True)
class Exit:
    """End the process: it cannot leave its incarnation."""

    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    """Something that an operator should see."""

    sentence: str
    warning: bool = True


@dataclass(frozen=True, slots=True)
class ConnectGateway:
    """Open the link to a gateway; it is down at first."""

    joined: GatewayJoined


@dataclass(frozen=True, slots=True)
class DisconnectGateway:
    """Close the link to a gateway; no `on_gateway_link` follows for it."""

    gateway: str


GatewayCommand = SendToGateway | ConnectGateway | DisconnectGateway
SessionCommand = GatewayCommand | WritePages | SwapOut | SwapIn | Connect | Disconnect | NewTransport | Exit | Log
