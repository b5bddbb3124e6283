"""A gateway in a virtual cluster: the real session, and queues in place of its links."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.gateway.core.session import GatewaySession
from baton.protocol.gateway_messages import GatewayLoad
from baton.simulator.links import Link


@dataclass(eq=False)
class VirtualGateway:
    """One gateway: its session, its link to the router, and the workers that may connect to it."""

    session: GatewaySession
    link: Link = field(init=False)  # to the router
    workers: set[str] = field(default_factory=set)  # accepted ones, by name
    silent: bool = False  # stopped: it takes and sends nothing
    slow: float = 1.0  # how many times as long messages to it take
    gone: bool = False  # its process has ended
    loaded_s: float = 0.0  # when it sent its last heartbeat

    @property
    def blocked(self) -> bool:
        """Whether it takes no message now."""
        return self.silent or self.gone

    @property
    def name(self) -> str:
        return self.session.info.name

    @property
    def incarnation(self) -> str:
        return self.session.info.incarnation

    @property
    def address(self) -> str:
        """Where workers connect."""
        return self.session.info.worker_address

    @property
    def load(self) -> GatewayLoad:
        """Its heartbeat."""
        return self.session.load(0.0)
