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
from baton.simulator.timing import HOST_EFFICIENCY, Roofline, roofline
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

    @property
    def counts(self) -> dict[RoleName, int]:
        """The pools that have workers."""
        counts = {RoleName.PREFILL: self.prefill, RoleName.DECODE: self.decode, RoleName.MIXED: self.mixed}
        return {role: count for role, count in counts.items() if count}

    def __str__(self) -> str:
        return " + ".join(f"{count} {role.value}" for role, count in self.counts.items())


@dataclass(frozen=True, slots=True)
class Degrees:
    """GPUs that compute each step of a worker together. None: the fewest that leave a third of their memory for KV."""

    prefill: int | None = None
    decode: int | None = None
    mixed: int | None = None

    def of(self, role: RoleName) -> int | None:
        """The degree of a pool."""
        return {RoleName.PREFILL: self.prefill, RoleName.DECODE: self.decode, RoleName.MIXED: self.mixed}[role]


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything of a simulated cluster but its pool sizes. Plain values, so that another process can be sent it."""

    model: str
    gpu: str
    tensor_parallel: Degrees = field(default_factory=Degrees)
    policy: str = "predicted_latency"
    refuse_late: bool = True
    slo: Slo | None = field(default_factory=Slo)
    page_size: int = PAGE_SIZE  # tokens
    chunk_tokens: int = 2048
    mixed_chunk_tokens: int = 512
    max_batch: int = 1024
    network_gb_s: float = 45.0  # GB/s into and out of each GPU of a worker
    swap_memory_gb: float = 0.0  # host memory of a worker for the pages of preempted sequences
    seed: int = 0
    auto: bool = False  # the router may move workers between the pools

    def timer(self, role: RoleName) -> Roofline:
        """How long the steps of a pool's workers take.

        Raises `ConfigError` for a model or accelerator that is not known, and for a degree that does not divide it.
        """
        return roofline(model_shape(self.model), accelerator(self.gpu), self.tensor_parallel.of(role))

    def degree(self, role: RoleName) -> int:
        """GPUs of each of a pool's workers."""
        return self.timer(role).devices

    @property
    def degrees(self) -> dict[str, int]:
        """The same of all pools, by name."""
        return {role.value: self.degree(role) for role in RoleName}

    def gpus(self, pools: Pools) -> int:
        """GPUs that the pools take."""
        return sum(count * self.degree(role) for role, count in pools.counts.items())

    def cluster(self, pools: Pools) -> ClusterSpec:
        """Raises `ConfigError` for a cluster that cannot be simulated: unknown names, too little memory, no decoder."""
        check_policy(self.policy)
        if pools.decode + pools.mixed == 0:
            raise ConfigError("No pool decodes: give at least one decode or mixed worker.")
        kinds = {role: self._worker(role) for role in pools.counts}
        workers = [kinds[role] for role, count in pools.counts.items() for _ in range(count)]
        bandwidth, prior = 1e9 * self.network_gb_s, self.timer(workers[0].role).prior()
        return ClusterSpec(workers, self.slo, bandwidth_bytes_s=bandwidth, prior=prior, auto=self.auto)

    def _worker(self, role: RoleName) -> WorkerSpec:
        timer = self.timer(role)
        layout = timer.page_layout(self.page_size)
        return WorkerSpec(
            role,
            timer,
            layout,
            self.chunk_tokens,
            self.mixed_chunk_tokens,
            self.max_batch,
            int(1e9 * self.swap_memory_gb // timer.page_bytes(self.page_size)),
            timer.host_bandwidth_bytes_s,
            timer.devices,
        )

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
        shape = model_shape(self.model)
        limits = f"{self.chunk_tokens} prompt tokens per step, {self.mixed_chunk_tokens} beside decodes"
        return {
            "model": f"{self.model}, {shape.num_parameters / 1e9:.1f} billion parameters"
            + (f", {shape.active_parameters / 1e9:.1f} of them per token" if shape.experts > 1 else ""),
            **self._described_workers(pools),
            "pools": f"{pools} ({self.gpus(pools)} × {self.gpu})"
            + (", the router moves workers between them" if self.auto else ""),
            "steps": f"{limits}, {self.max_batch} sequences",
            "network": f"{self.network_gb_s:g} GB/s per GPU",
            "preemption": f"{self.swap_memory_gb:g} GB of host memory per worker, "
            f"at {accelerator(self.gpu).host_bandwidth_bytes_s * HOST_EFFICIENCY / 1e9:.0f} GB/s per GPU"
            if self.swap_memory_gb
            else "pages are computed again",
            "policy": self.policy + ("" if self.refuse_late else ", late requests are served"),
            "objectives": described_slo(self.slo),
        }

    def _described_workers(self, pools: Pools) -> dict[str, str]:
        """One row, or one for each pool where their degrees differ."""
        rows = {}
        for role in pools.counts:
            timer = self.timer(role)
            tokens = timer.page_layout(self.page_size).num_pages * self.page_size
            rows[f"{role.value} worker"] = (
                f"{timer.devices} × {self.gpu}: {timer.model.weight_bytes / 1e9:.0f} GB of weights, "
                f"KV for {tokens:,} tokens in pages of {self.page_size}"
            )
        texts = set(rows.values())
        return {"worker": texts.pop()} if len(texts) == 1 else rows

    def named(self, pools: Pools) -> str:
        """The pools, with the GPUs of a worker where it has several."""
        if all(self.degree(role) == 1 for role in pools.counts):
            return str(pools)
        named = (f"{count} {role.value} × {self.degree(role)}" for role, count in pools.counts.items())
        return " + ".join(named) + " GPUs"


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
