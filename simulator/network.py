"""The network between workers: each has a link in and a link out, and a transfer has both to itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.events import Action, Events


@dataclass(eq=False)
class Network:
    """Messages take `latency_s`, pages also their bytes over `bandwidth_bytes_s`, one transfer after another."""

    events: Events
    bandwidth_bytes_s: float
    latency_s: float
    bytes_moved: int = 0
    _free_s: dict[str, float] = field(default_factory=dict)  # when a link (direction and worker) is free again

    def send(self, action: Action) -> None:
        """Deliver a message."""
        self.events.after(self.latency_s, action)

    def transfer(self, source: str, target: str, num_bytes: int, action: Action) -> float:
        """Move pages; `action` runs when they have arrived. Returns how long that takes, waiting included."""
        links = (f"out {source}", f"in {target}")
        start_s = max(self.events.now, *(self._free_s.get(link, 0.0) for link in links))
        end_s = start_s + self.latency_s + num_bytes / self.bandwidth_bytes_s
        for link in links:
            self._free_s[link] = end_s
        self.bytes_moved += num_bytes
        self.events.at(end_s, action)
        return end_s - self.events.now
