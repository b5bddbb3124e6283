"""From an operator's words to what is simulated: a model, an accelerator, pool sizes and a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from baton.protocol.errors import ConfigError
from baton.protocol.worker import RoleName
from baton.router.policy.placement import Placement
from baton.router.policy.policies import check_policy, make_policy
from baton.simulator.hardware import accelerator
from baton.simulator.models import model_shape
from baton.simulator.result import SimulationResult
from baton.simulator.simulation import ClusterSpec, Simulation, Slo, WorkerSpec
from baton.simulator.timing import Roofline, roofline
from baton.simulator.trace import TraceRequest, scale_arrivals

PAGE_SIZE = 64  # tokens, where the trace says nothing


@dataclass(frozen=True, slots=True)
class Pools:
    """How many workers have each role."""

    prefill: int = 0
    decode: int = 0
    mixed: int = 0

    @property
    def workers(self) -> int:
        return self.prefill + self.decode + self.mixed

    def __str__(self) -> str:
        counts = ((self.prefill, "prefill"), (self.decode, "decode"), (self.mixed, "mixed"))
        return " + ".join(f"{count} {role}" for count, role in counts if count)


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything of a simulated cluster but its pool sizes. Plain values, so that another process can be sent it."""

    model: str
    gpu: str
    gpus_per_worker: int | None = None  # None: the fewest that leave a third of their memory for KV
    policy: str = "predicted_latency"
    refuse_late: bool = True
    slo: Slo | None = field(default_factory=Slo)
    page_size: int = PAGE_SIZE  # tokens
    chunk_tokens: int = 2048
    mixed_chunk_tokens: int = 512
    max_batch: int = 1024
    network_gb_s: float = 45.0  # GB/s into and out of a worker
    swap_memory_gb: float = 0.0  # host memory of a worker for the pages of preempted sequences
    seed: int = 0
    auto: bool = False  # the router may move workers between the pools

    @property
    def timer(self) -> Roofline:
        """How long one worker's steps take. Raises `ConfigError` for a model or accelerator that is not known."""
        return roofline(model_shape(self.model), accelerator(self.gpu), self.gpus_per_worker)

    def cluster(self, pools: Pools) -> ClusterSpec:
        """Raises `ConfigError` for a cluster that cannot be simulated: unknown names, too little memory, no decoder."""
        check_policy(self.policy)
        if pools.decode + pools.mixed == 0:
            raise ConfigError("No pool decodes: give at least one decode or mixed worker.")
        timer = self.timer
        layout = timer.page_layout(self.page_size)
        counts = ((RoleName.PREFILL, pools.prefill), (RoleName.DECODE, pools.decode), (RoleName.MIXED, pools.mixed))
        workers = [
            WorkerSpec(
                role,
                timer,
                layout,
                self.chunk_tokens,
                self.mixed_chunk_tokens,
                self.max_batch,
                int(1e9 * self.swap_memory_gb // layout.page_bytes),
                timer.host_bandwidth_bytes_s,
            )
            for role, count in counts
            for _ in range(count)
        ]
        bandwidth = 1e9 * self.network_gb_s
        return ClusterSpec(workers, self.slo, bandwidth_bytes_s=bandwidth, prior=timer.prior(), auto=self.auto)

    def placement(self) -> Placement:
        """A fresh policy of that name."""
        return make_policy(self.policy, self.refuse_late, self.seed)

    def simulate(
        self, pools: Pools, trace: Sequence[TraceRequest], tell: Callable[[float, int], None] | None = None
    ) -> SimulationResult:
        """Play the trace; `tell` receives virtual seconds and requests ended."""
        return Simulation(self.cluster(pools), self.placement(), trace, self.seed).run(tell)

    def described(self, pools: Pools) -> dict[str, str]:
        """What is simulated, for people."""
        timer, layout = self.timer, self.timer.page_layout(self.page_size)
        tokens = layout.num_pages * layout.page_size
        limits = f"{self.chunk_tokens} prompt tokens per step, {self.mixed_chunk_tokens} beside decodes"
        return {
            "model": f"{self.model}, {timer.model.num_parameters / 1e9:.1f} billion parameters",
            "worker": f"{timer.devices} × {self.gpu}: {timer.weight_bytes / 1e9:.0f} GB of weights, "
            f"KV for {tokens:,} tokens in pages of {layout.page_size}",
            "pools": f"{pools} ({pools.workers * timer.devices} × {self.gpu})"
            + (", the router moves workers between them" if self.auto else ""),
            "steps": f"{limits}, {self.max_batch} sequences",
            "network": f"{self.network_gb_s:g} GB/s per worker",
            "preemption": f"{self.swap_memory_gb:g} GB of host memory per worker, "
            f"at {timer.host_bandwidth_bytes_s / 1e9:.0f} GB/s"
            if self.swap_memory_gb
            else "pages are computed again",
            "policy": self.policy + ("" if self.refuse_late else ", late requests are served"),
            "objectives": described_slo(self.slo),
        }


def described_slo(slo: Slo | None) -> str:
    """The objectives of every request, for people."""
    if slo is None:
        return "none"
    growth = f" + {1000 * slo.ttft_s_per_token:g} ms per prompt token" if slo.ttft_s_per_token else ""
    return f"TTFT {slo.ttft_s:g} s{growth}, TPOT {1000 * slo.tpot_s:g} ms"


def page_size_for(trace: Sequence[TraceRequest], asked: int | None) -> int:
    """The asked page size, else the trace's block size, so that what it shares is shared here, else a usual one."""
    if asked is not None:
        return asked
    return next((request.block_tokens for request in trace if request.blocks), PAGE_SIZE)


def workload(trace: Sequence[TraceRequest], requests: int | None, scale: float) -> list[TraceRequest]:
    """The first `requests` of a trace (None: all), `scale` times as fast."""
    return scale_arrivals(trace[:requests], scale)
