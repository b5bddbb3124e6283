"""Our writes in flight, and which peers they are stalled at. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

LOOK_S = 1.0  # the most that counts between two checks: on a CPU the transport stands still while a step runs
SLOW_BYTES_S = 50e6  # a link this slow still counts as working


@dataclass(slots=True, eq=False)
class _Peer:
    writes: dict[int, int] = field(default_factory=dict)  # write id → bytes
    waited_s: float = 0.0  # observed since a write to it started or ended


@dataclass(eq=False)
class WriteWatch:
    """A peer is stalled when no write to it has ended for `limit_s` plus the time of their bytes; 0: never."""

    limit_s: float
    _peers: dict[str, _Peer] = field(default_factory=dict)
    _agent_of: dict[int, str] = field(default_factory=dict)
    _looked_s: float = 0.0

    def __len__(self) -> int:
        """Writes in flight."""
        return len(self._agent_of)

    def began(self, write_id: int, agent: str, num_bytes: int) -> None:
        """A write was ordered. It does not extend the limit of earlier ones."""
        self._agent_of[write_id] = agent
        self._peers.setdefault(agent, _Peer()).writes[write_id] = num_bytes

    def ended(self, write_id: int) -> str:
        """A write has ended or failed: its peer, whose agent is returned, makes progress."""
        agent = self._agent_of.pop(write_id)
        peer = self._peers[agent]
        del peer.writes[write_id]
        peer.waited_s = 0.0
        if not peer.writes:
            del self._peers[agent]
        return agent

    def look(self, now: float) -> list[str]:
        """Agents of the stalled peers, at each call until they make progress."""
        passed_s, self._looked_s = min(now - self._looked_s, LOOK_S), now
        if not self.limit_s:
            return []
        for peer in self._peers.values():
            peer.waited_s += passed_s
        return [agent for agent, peer in self._peers.items() if peer.waited_s > self._patience_s(peer)]

    def _patience_s(self, peer: _Peer) -> float:
        return self.limit_s + sum(peer.writes.values()) / SLOW_BYTES_S
