"""What each process is told when it starts: sections of the configuration, every "auto" in them replaced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from baton.config.schema import AccessSection, EngineSection, LoggingSection, ModelSection, RouterSection
from baton.protocol.link_keys import RouterKeys, WorkerKeys
from baton.protocol.sampling import SamplingDefaults


class ResolvedModel(ModelSection):
    """The section [model], resolved; `path` names the built-in model's folder too."""

    dtype: Literal["float32", "bfloat16", "float16"]
    context_tokens: int


class ResolvedEngine(EngineSection):
    """The section [engine] for the workers of one pool, resolved.

    `num_pages` and `host_pages` are what became of `kv_memory_gib` and `swap_memory_gib`. `attention = "auto"` is left
    to the worker, which sees its GPU.
    """

    num_pages: int
    """KV pages; 0: as many as fit on the GPU"""

    chunk_tokens: int
    mixed_chunk_tokens: int
    max_batch: int
    threads: int
    gpu_memory_fraction: float

    host_pages: int = 0
    """Slots of host memory for preempted sequences; 0: they are computed again"""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Everything a worker needs to start."""

    name: str
    role: str  # a RoleName's value
    router_address: str  # of the router's worker link, such as "tcp://127.0.0.1:5555"
    model: ResolvedModel
    engine: ResolvedEngine
    access: AccessSection = field(default_factory=AccessSection)
    logging: LoggingSection = field(default_factory=LoggingSection)
    link_keys: WorkerKeys | None = field(default=None, repr=False)  # None: the link is open


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Everything the router needs to start."""

    model: ResolvedModel
    model_name: str
    router: RouterSection
    worker_host: str
    worker_port: int = 0  # any
    settings: dict[str, str] = field(default_factory=dict)  # shown by `baton status`
    sampling_defaults: SamplingDefaults = field(default_factory=dict)  # of requests that leave them open
    access: AccessSection = field(default_factory=AccessSection)
    logging: LoggingSection = field(default_factory=LoggingSection)
    link_keys: RouterKeys | None = field(default=None, repr=False)  # None: the link is open


@dataclass(frozen=True, slots=True)
class RouterAddresses:
    """Where a running router is reached."""

    worker: str  # by workers, such as "tcp://127.0.0.1:5555"
    public: str  # by clients, "host:port"
    admin: str  # by operators, "host:port"
