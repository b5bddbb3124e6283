"""The schema of the configuration file: one TOML document in which every key has a default.

A key is declared here only: type, bounds and default in its field, the description below it. `python -m
baton.deploy.config_files` generates `deploy/cluster.toml` and `docs/configuration.md`. Router and workers receive the
sections themselves (baton/config/process_config.py), so a new key is a field here and the code that reads it.

"auto" is resolved at start from the machine and the model (baton/config/resolve.py), and printed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0.05, le=0.98, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def of(cls, section: BaseModel, **values: Any) -> Self:
        """The keys of `section` with some values replaced; raises pydantic's `ValidationError` for an invalid one."""
        return cls.model_validate({**section.model_dump(), **values})

    def changed(self, **values: Any) -> Self:
        """This section with some values replaced; raises pydantic's `ValidationError` for an invalid key or value."""
        return self.of(self, **values)


class ModelSection(_Section):
    """The model and its number format."""

    path: str = ""
    """Folder or Hugging Face hub id; empty: the built-in model"""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and KV; auto: bfloat16 on GPUs and on CPUs with fast bfloat16 products, else float32"""

    context_tokens: int | Auto = "auto"
    """Maximum of prompt and output tokens together; auto and upper limit: the model's context"""

    generation_config: Literal["auto", "off"] = "auto"
    """Sampling defaults; auto: those of the model's generation_config.json; off: greedy, 256 tokens"""

    chat_template: str = ""
    """File with a chat template; empty: the model's own"""


class PoolsSection(_Section):
    """Number of workers in each pool, and of gateways, at start."""

    prefill: int = Field(default=1, ge=0, le=1024)
    """Workers that compute prompts"""

    decode: int = Field(default=1, ge=0, le=1024)
    """Workers that generate tokens"""

    mixed: int = Field(default=0, ge=0, le=1024)
    """Workers that serve whole requests"""

    gateways: int = Field(default=1, ge=1, le=64)
    """Processes that serve clients; those on one node share the port"""


class TensorParallelSection(_Section):
    """Ranks of each worker, by pool: processes on one node that compute every step together, each with a part of the
    weights and of the KV heads, and on GPUs each with its own. The pools' degrees may differ."""

    prefill: int = Field(default=1, ge=1, le=64)
    """Ranks of a prefill worker"""

    decode: int = Field(default=1, ge=1, le=64)
    """Ranks of a decode worker"""

    mixed: int = Field(default=1, ge=1, le=64)
    """Ranks of a mixed worker"""


class EngineSection(_Section):
    """Memory, steps and device of each worker."""

    page_size: Literal[1, 2, 4, 8, 16, 32, 64, 128] = 16
    """Token positions per KV page"""

    num_pages: int | Auto = "auto"
    """KV pages per worker; auto: as many as kv_memory_gib holds, on a GPU as many as fit"""

    kv_memory_gib: float | Auto = "auto"
    """GiB for KV pages per worker; auto: a quarter of the free memory, divided among the workers"""

    swap_memory_gib: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Auto = "auto"
    """GiB of host memory per worker for pages of preempted sequences; 0: none, preempted sequences are recomputed;
    auto: an eighth of the free memory, divided among the workers, at most 8"""

    chunk_tokens: int | Auto = "auto"
    """Prefill tokens per step; auto: 8192 on a GPU, else 512, at most the context"""

    mixed_chunk_tokens: int | Auto = "auto"
    """Prefill tokens in a step that also decodes; auto: a quarter of chunk_tokens"""

    max_batch: int | Auto = "auto"
    """Sequences per decode step; auto: 256 on a GPU, else 32"""

    threads: int | Auto = "auto"
    """CPU threads per rank of a worker; auto: the cores, divided among all ranks"""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] = "auto"
    """cpu, cuda or cuda:N; auto: a GPU for workers whose pool takes gpus (placement), else cpu"""

    gpu_memory_fraction: Fraction | Auto = "auto"
    """Share of the GPU's memory that a worker uses; auto: 0.9, divided among the workers of the GPU"""

    cuda_graphs: bool = True
    """Record decode steps as CUDA graphs at start, and replay them; workers of several ranks record none"""

    attention: Literal["auto", "fa2", "fa3"] = "auto"
    """Prefill kernels on a GPU; auto: fa3 on Hopper if installed, else fa2"""

    transport: str = "nixl"
    """Transport of KV pages between workers"""

    checksum_every: int = Field(default=16, ge=0)
    """Checksum every N-th page of a handoff; 1: every page, 0: no page"""

    write_stall_s: float = Field(default=10.0, ge=0)
    """Seconds without progress after which a worker stops waiting for its writes to another; 0: never"""


class GatewaySection(_Section):
    """Addresses and time limits of the gateways, which serve clients."""

    host: str = "127.0.0.1"
    """Address for clients"""

    port: int = Field(default=50051, ge=0, le=65535)
    """Port for gRPC clients, which the gateways of a node share; 0: any free port"""

    http_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = 8000
    """Port for HTTP clients (the OpenAI API), which the gateways of a node share; 0: any free port; off: no HTTP"""

    metrics_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = 0
    """Port for Prometheus, of each gateway its own (docs/metrics.md); 0: any free port; off: only on http_port"""

    router_grace_s: float = Field(default=10.0, ge=0, le=600)
    """Seconds that requests without any token wait for a router that is away"""

    write_timeout_s: float = Field(default=30.0, ge=0)
    """Seconds after which a stream that its client does not read is ended; 0: never"""

    stop_grace_s: float = Field(default=5.0, ge=0, le=60)
    """Seconds that running streams get to end at `baton down`; new requests are refused"""


class RouterSection(_Section):
    """Placement and time limits of the router, and the address for administration."""

    admin_host: str = "127.0.0.1"
    """Address for administration; its callers can change the pools"""

    admin_port: int = Field(default=50052, ge=0, le=65535)
    """Port for administration; 0: any free port"""

    admin_http_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = 8001
    """Port for operators over HTTP (page, metrics) on admin_host; 0: any free port; off: no HTTP"""

    policy: str = "predicted_latency"
    """Placement policy (docs/policies.md)"""

    refuse_late: bool = True
    """Refuse requests that can no longer meet their objectives"""

    auto_rebalance: bool = False
    """Whether the planner moves workers between the pools from the start"""

    max_queued: int = Field(default=4096, ge=1)
    """Maximum of requests that wait for a worker; further requests are refused"""

    lost_after_s: float = Field(default=2.0, gt=0)
    """Seconds without a message after which a worker counts as lost"""

    no_workers_grace_s: float = Field(default=5.0, ge=0, le=600)
    """Seconds that a request waits for a decode worker to appear"""

    claim_within_s: float = Field(default=30.0, ge=0, le=600)
    """Seconds that sequences wait for their clients after a router restart; 0: sequences are recomputed"""

    state_file: str = ""
    """File that keeps the learned output lengths over a restart; empty: they are not kept"""


class PoolPlacement(_Section):
    """Resources of each rank of a pool's workers, and labels of the node of each worker."""

    cpus: float = Field(default=0.0, ge=0)
    """Cores; also the number of the rank's threads if engine.threads is auto"""

    gpus: float = Field(default=0.0, ge=0)
    """GPUs; a fraction shares a GPU; 1 for workers of several ranks on GPUs"""

    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Ray's custom resources, such as { baton_prefill = 1 }"""

    labels: dict[str, str] = {}
    """Ray labels of the node, such as { "ray.io/accelerator-type" = "H100" }; "!H100" and "in(H100, H200)" work too"""

    env: dict[str, str] = {}
    """Environment variables, such as { UCX_TLS = "rc,cuda", UCX_NET_DEVICES = "mlx5_0:1" }"""


class PlacementSection(_Section):
    """Placement of workers on nodes; each pool, and gateways, have their own table. A gateway without resources or
    labels runs on the router's node."""

    strategy: Literal["free", "pack", "spread"] = "free"
    """free: each worker by itself; pack: prefill and decode workers on one node; spread: each on a node of its own"""

    prefill: PoolPlacement = PoolPlacement()
    decode: PoolPlacement = PoolPlacement()
    mixed: PoolPlacement = PoolPlacement()
    gateway: PoolPlacement = PoolPlacement()


class AccessSection(_Section):
    """Access control and limits of callers (docs/security.md). Changed files are reloaded."""

    tls_certificate: str = ""
    """PEM file of the certificate; turns on TLS for gRPC and HTTP servers; empty: plain text"""

    tls_key: str = ""
    """PEM file of the certificate's private key"""

    client_ca: str = ""
    """PEM file of the CA whose client certificates are required (mutual TLS); empty: none required"""

    tokens_file: str = ""
    """TOML file of token hashes, tenants and roles (`baton token new`); empty: any client may call"""

    share_prefixes: bool = False
    """Share the prefix cache between tenants; response times then reveal to a tenant which prompts others sent"""

    open_admin: bool = False
    """Allow administration from other machines without tokens or mutual TLS"""

    max_prompt_tokens: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Maximum of tokens in a prompt; auto: the model's context"""

    max_message_mib: int = Field(default=64, ge=1, le=1024)
    """Maximum size of a request message in MiB"""

    max_streams_per_tenant: int = Field(default=0, ge=0)
    """Maximum of concurrent streams per tenant; 0: no limit"""


class LoggingSection(_Section):
    """Logs of router, gateways and workers (docs/operations.md)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged; debug adds the end of each request"""

    format: Literal["text", "json"] = "text"
    """Format of a line; json: an object with time, level, process, message, ids and exception"""

    access: bool = False
    """Log a line per ended request at its gateway, at any level"""


class TracingSection(_Section):
    """Traces for OpenTelemetry (docs/tracing.md)."""

    endpoint: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = ""
    """URL of a collector that takes OTLP over HTTP, such as "http://localhost:4318"; empty: no traces"""

    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that are traced; one with a traceparent follows its caller's decision"""

    service_name: str = Field(default="baton", min_length=1)
    """Name of the cluster in traces (service.name)"""


class BatonConfig(_Section):
    """A whole configuration."""

    model: ModelSection = ModelSection()
    pools: PoolsSection = PoolsSection()
    tensor_parallel: TensorParallelSection = TensorParallelSection()
    engine: EngineSection = EngineSection()
    gateway: GatewaySection = GatewaySection()
    router: RouterSection = RouterSection()
    placement: PlacementSection = PlacementSection()
    access: AccessSection = AccessSection()
    logging: LoggingSection = LoggingSection()
    tracing: TracingSection = TracingSection()
