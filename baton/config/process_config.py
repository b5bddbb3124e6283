"""The configuration of each process: sections of the file in which every "auto" is resolved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from baton.config.schema import (
    AccessSection,
    EngineSection,
    GatewaySection,
    LoggingSection,
    ModelSection,
    RouterSection,
    TracingSection,
)
from baton.protocol.link_keys import PeerKeys
from baton.protocol.sampling import SamplingDefaults


class ResolvedModel(ModelSection):
    """The section [model], resolved; `path` names the built-in model's folder too."""

    dtype: Literal["float32", "bfloat16", "float16"]
    context_tokens: int


class ResolvedEngine(EngineSection):
    """The section [engine] for the workers of one pool, resolved.

    `num_pages` and `host_pages` come from `kv_memory_gib` and `swap_memory_gib`. The worker resolves
    `attention = "auto"`, because it sees its GPU.
    """

    num_pages: int
    """KV pages; 0: as many as fit on the GPU"""

    chunk_tokens: int
    mixed_chunk_tokens: int
    max_batch: int
    threads: int
    gpu_memory_fraction: float

    host_pages: int = 0
    """Pages of host memory for preempted sequences; 0: preempted sequences are recomputed"""

    ranks: int = 1
    """Processes of a worker, which compute each step together (tensor parallelism)"""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Everything a worker needs to start."""

    name: str
    role: str  # A RoleName's value
    router_address: str  # The router's link, such as "tcp://127.0.0.1:5555"
    model: ResolvedModel
    engine: ResolvedEngine
    access: AccessSection = field(default_factory=AccessSection)
    logging: LoggingSection = field(default_factory=LoggingSection)
    link_keys: PeerKeys | None = field(default=None, repr=False)  # None: an open link


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Everything a gateway needs to start."""

    name: str
    router_address: str  # The router's link, such as "tcp://127.0.0.1:5555"
    model: ResolvedModel
    model_name: str
    page_size: int
    gateway: GatewaySection
    worker_host: str
    worker_port: int = 0  # 0: any free port
    sampling_defaults: SamplingDefaults = field(default_factory=dict)  # The model's, for parameters a request omits
    template_text: str = ""  # The text of one given by the operator; "": the model's own
    access: AccessSection = field(default_factory=AccessSection)
    logging: LoggingSection = field(default_factory=LoggingSection)
    tracing: TracingSection = field(default_factory=TracingSection)
    link_keys: PeerKeys | None = field(default=None, repr=False)  # None: open links


@dataclass(frozen=True, slots=True)
class GatewayAddresses:
    """The addresses of a running gateway."""

    worker: str  # For workers, such as "tcp://127.0.0.1:5600"
    public: str  # For gRPC clients, "host:port"
    http: str = ""  # For HTTP clients, "host:port"; "": no HTTP

    @property
    def words(self) -> str:
        """The addresses for clients, as "gRPC on host:port, HTTP on host:port"."""
        return f"gRPC on {self.public}" + (f", HTTP on {self.http}" if self.http else "")


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Everything the router needs to start."""

    model: ResolvedModel
    model_name: str
    router: RouterSection
    worker_host: str
    worker_port: int = 0  # 0: any free port
    settings: dict[str, str] = field(default_factory=dict)  # Shown by `baton status`
    access: AccessSection = field(default_factory=AccessSection)
    logging: LoggingSection = field(default_factory=LoggingSection)
    tracing: TracingSection = field(default_factory=TracingSection)
    link_secret: str = field(default="", repr=False)  # Of the cluster (`baton.links.keys`); "": open links


@dataclass(frozen=True, slots=True)
class RouterAddresses:
    """The addresses of a running router."""

    worker: str  # For workers and gateways, such as "tcp://127.0.0.1:5555"
    admin: str  # For operators, "host:port"
    admin_http: str = ""  # For operators over HTTP, "host:port"; "": no HTTP

    @property
    def words(self) -> str:
        """The addresses for operators, as "host:port, HTTP on host:port"."""
        return self.admin + (f", HTTP on {self.admin_http}" if self.admin_http else "")
