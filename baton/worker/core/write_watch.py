"""Whether the writes to a peer make progress. Pure: the loop tells of writes and looks, with the time."""

from __future__ import annotations

from dataclasses import dataclass, field

LOOK_S = 1.0  # the most that counts between two looks: on a CPU nothing drives the transport while a step runs
SLOW_BYTES_S = 50e6  # a link may be as slow as that and still count as whole


@dataclass(slots=True, eq=False)
class _Peer:
    writes: dict[int, int] = field(default_factory=dict)  # transfer id → bytes
    waited_s: float = 0.0  # looked at since a write to it began or ended


@dataclass(eq=False)
class WriteWatch:
    """A peer is stalled when none of its writes has ended for `limit_s`, and what their bytes take; 0: never."""

    limit_s: float
    _peers: dict[str, _Peer] = field(default_factory=dict)
    _agent_of: dict[int, str] = field(default_factory=dict)
    _looked_s: float = 0.0

    def began(self, transfer_id: int, agent: str, num_bytes: int) -> None:
        """A write was given to the transport. It does not excuse those before it."""
        self._agent_of[transfer_id] = agent
        self._peers.setdefault(agent, _Peer()).writes[transfer_id] = num_bytes

    def ended(self, transfer_id: int) -> str:
        """A write is over, well or not: the peer, whose agent is returned, has moved."""
        agent = self._agent_of.pop(transfer_id)
        peer = self._peers[agent]
        del peer.writes[transfer_id]
        peer.waited_s = 0.0
        if not peer.writes:
            del self._peers[agent]
        return agent

    def look(self, now: float) -> list[str]:
        """Agents of the peers that are stalled, each time again until they move."""
        passed_s, self._looked_s = min(now - self._looked_s, LOOK_S), now
        if not self.limit_s:
            return []
        for peer in self._peers.values():
            peer.waited_s += passed_s
        return [agent for agent, peer in self._peers.items() if peer.waited_s > self._patience_s(peer)]

    def _patience_s(self, peer: _Peer) -> float:
        return self.limit_s + sum(peer.writes.values()) / SLOW_BYTES_S
