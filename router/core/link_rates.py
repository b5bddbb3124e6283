"""The measured rates of KV pages between workers. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.protocol.link_rate import slow_link
from baton.protocol.session_messages import LinkMeasured
from baton.router.policy.cluster_state import ClusterState


@dataclass(frozen=True, slots=True)
class LinkRate:
    """The measured rate of pages from one worker to another."""

    source: str
    target: str
    num_bytes: int
    seconds: float
    same_host: bool
    warning: str  # one sentence; empty: none


@dataclass(eq=False)
class LinkRates:
    """The latest measurement of each link between two workers of the cluster."""

    state: ClusterState
    _measured: dict[tuple[str, str], LinkMeasured] = field(default_factory=dict)  # by (source, target)

    def measured(self, source: str, message: LinkMeasured) -> None:
        """The worker reports its rate to a peer; a rate to a worker that has left is ignored."""
        target = message.agent.rpartition(":")[0]
        view = self.state.workers.get(target)
        if view is not None and view.info.endpoint.agent == message.agent:
            self._measured[source, target] = message

    def on_left(self, worker: str) -> None:
        """Forget the links of a worker that has left."""
        for link in [link for link in self._measured if worker in link]:
            del self._measured[link]

    def rates(self) -> list[LinkRate]:
        """The measured links, by the names of source and target."""
        rates = []
        for (source, target), one in sorted(self._measured.items(), key=lambda item: item[0]):
            infos = self.state.workers[source].info, self.state.workers[target].info
            same_host = bool(infos[0].host) and infos[0].host == infos[1].host
            on_gpus = all(info.device != "cpu" for info in infos)
            warning = slow_link(source, target, one.bytes_per_s, same_host and on_gpus)
            rates.append(LinkRate(source, target, one.num_bytes, one.seconds, same_host, warning))
        return rates
