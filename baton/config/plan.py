"""What each process is told when it starts: every "auto" already resolved."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.config import defaults
from baton.config.access import AccessPlan
from baton.protocol.link_keys import RouterKeys, WorkerKeys
from baton.protocol.sampling import SamplingDefaults


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """Everything a worker needs to start."""

    name: str
    role: str  # a RoleName's value
    model: str
    router_address: str  # of the router's worker link, such as "tcp://127.0.0.1:5555"
    dtype: str
    device: str  # "cpu" or such as "cuda:0"
    context_tokens: int
    num_pages: int  # 0: as many as fit on the GPU
    page_size: int
    chunk_tokens: int
    mixed_chunk_tokens: int
    max_batch: int
    threads: int
    checksum_every: int = defaults.CHECKSUM_EVERY  # pages of a handoff of which one is summed; 0: none
    share_prefixes: bool = False  # between tenants; as the router's
    host_pages: int = 0  # slots of host memory for preempted sequences; 0: they are computed again
    write_stall_s: float = defaults.WRITE_STALL_S  # without progress, after which writes are given up; 0: never
    gpu_memory_fraction: float = 0.9  # of the GPU's memory, for all that the worker has there
    cuda_graphs: bool = True
    attention: str = "auto"  # prefill kernels on a GPU: "auto", "fa2", or "fa3" on Hopper
    log_level: str = defaults.LOG_LEVEL
    transport: str = defaults.TRANSPORT
    link_keys: WorkerKeys | None = field(default=None, repr=False)  # None: the link is open


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """Everything the router needs to start."""

    model: str
    model_name: str
    dtype: str
    context_tokens: int
    host: str
    port: int
    worker_host: str
    max_queued: int
    lost_after_s: float
    policy: str = defaults.POLICY
    no_workers_grace_s: float = defaults.NO_WORKERS_GRACE_S  # requests wait so long for a decode worker
    claim_within_s: float = defaults.CLAIM_WITHIN_S  # for clients of sequences that outlived a router; 0: none may
    refuse_late: bool = True  # those whose objectives cannot be met any more
    auto_rebalance: bool = False  # whether the planner moves workers between the pools from the start
    stop_grace_s: float = defaults.STOP_GRACE_S  # for running streams, when it is told to stop
    write_timeout_s: float = defaults.WRITE_TIMEOUT_S  # after which a client that reads nothing is cut; 0: never
    state_file: str = ""  # keeps what was learned of output lengths over a restart
    settings: dict[str, str] = field(default_factory=dict)  # shown by `baton status`
    sampling_defaults: SamplingDefaults = field(default_factory=dict)  # of requests that leave them open
    admin_host: str = "127.0.0.1"
    admin_port: int = 0  # any
    worker_port: int = 0  # any
    access: AccessPlan = field(default_factory=AccessPlan)
    log_level: str = defaults.LOG_LEVEL
    link_keys: RouterKeys | None = field(default=None, repr=False)  # None: the link is open


@dataclass(frozen=True, slots=True)
class RouterAddresses:
    """Where a running router is reached."""

    worker: str  # by workers, such as "tcp://127.0.0.1:5555"
    public: str  # by clients, "host:port"
    admin: str  # by operators, "host:port"
