"""The configuration file: one TOML document whose every key has a default. A key is declared here and nowhere else.

Type, bounds and default of a key stand in its field, the description below it. `deploy/cluster.toml` and
`docs/configuration.md` are made from them by `python -m baton.deploy.config_files`. Router and workers get the sections
themselves (baton/config/process_config.py), so a new key is a field here and the code that reads it.

"auto" means: worked out at start from the machine and the model (baton/config/resolve.py), and printed.
"""

from __future__ import annotations

import difflib
import tomllib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from baton.protocol.errors import ConfigError

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0.05, le=0.98, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def of(cls, section: BaseModel, **values: Any) -> Self:
        """The keys of `section` with these in their place, checked as the file's are."""
        return cls.model_validate({**section.model_dump(), **values})

    def changed(self, **values: Any) -> Self:
        """This section with other values; raises pydantic's `ValidationError` for a key or a value that cannot be."""
        return self.of(self, **values)


class ModelSection(_Section):
    """The model and how its numbers are stored."""

    path: str = ""
    """Folder or Hugging Face hub id; empty: the built-in model"""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and KV; auto: bfloat16 on GPUs and on CPUs that multiply it fast, else float32"""

    context_tokens: int | Auto = "auto"
    """Longest prompt and output together; auto, and at most: what the model allows"""

    generation_config: Literal["auto", "off"] = "auto"
    """Sampling defaults; auto: those of the model's generation_config.json; off: greedy, 256 tokens"""


class PoolsSection(_Section):
    """How many workers each pool starts with."""

    prefill: int = Field(default=1, ge=0, le=1024)
    """Workers that compute prompts"""

    decode: int = Field(default=1, ge=0, le=1024)
    """Workers that generate tokens"""

    mixed: int = Field(default=0, ge=0, le=1024)
    """Workers that serve whole requests"""


class EngineSection(_Section):
    """What each worker computes with."""

    page_size: Literal[1, 2, 4, 8, 16, 32, 64, 128] = 16
    """Token positions per KV page"""

    num_pages: int | Auto = "auto"
    """KV pages per worker; auto: from kv_memory_gib, on a GPU as many as fit"""

    kv_memory_gib: float | Auto = "auto"
    """GiB for KV pages per worker; auto: a quarter of the free memory, shared by all workers"""

    swap_memory_gib: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Auto = "auto"
    """GiB of host memory per worker for pages of preempted sequences; 0: none, they are computed again; auto: an eighth
    of the free memory, shared by all workers, at most 8"""

    chunk_tokens: int | Auto = "auto"
    """Prefill tokens per step; auto: 8192 on a GPU, else 512, at most the context"""

    mixed_chunk_tokens: int | Auto = "auto"
    """Prefill tokens in a step that also decodes; auto: a quarter of chunk_tokens"""

    max_batch: int | Auto = "auto"
    """Sequences per decode step; auto: 256 on a GPU, else 32"""

    threads: int | Auto = "auto"
    """CPU threads per worker; auto: the cores, shared by all workers"""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] = "auto"
    """cpu, cuda or cuda:N; auto: a GPU for workers whose pool takes gpus (placement), else cpu"""

    gpu_memory_fraction: Fraction | Auto = "auto"
    """Share of its GPU's memory for everything of a worker; auto: 0.9, divided among its workers"""

    cuda_graphs: bool = True
    """Record decode steps when a worker starts, and replay them"""

    attention: Literal["auto", "fa2", "fa3"] = "auto"
    """Prefill kernels on a GPU; auto: fa3 on Hopper where it is installed, else fa2"""

    transport: str = "nixl"
    """What moves KV pages between workers"""

    checksum_every: int = Field(default=16, ge=0)
    """Compare the checksum of every N-th page of a handoff; 1: of all, 0: of none"""

    write_stall_s: float = Field(default=10.0, ge=0)
    """Seconds without progress after which writes to another worker are given up; 0: never"""


class RouterSection(_Section):
    """Where the router listens, how it places requests, what it waits for."""

    host: str = "127.0.0.1"
    """Address for clients"""

    port: int = Field(default=50051, ge=0, le=65535)
    """Port for clients; 0: any free one"""

    admin_host: str = "127.0.0.1"
    """Address for administration, which may change the pools"""

    admin_port: int = Field(default=50052, ge=0, le=65535)
    """Port for administration; 0: any free one"""

    policy: str = "predicted_latency"
    """The policy that places requests (docs/policies.md)"""

    refuse_late: bool = True
    """Refuse requests whose stated objectives can no longer be met"""

    auto_rebalance: bool = False
    """Let the planner move workers between the pools from the start"""

    max_queued: int = Field(default=4096, ge=1)
    """Requests that may wait for a worker; more are refused"""

    lost_after_s: float = Field(default=2.0, gt=0)
    """Seconds of silence after which a worker is given up"""

    no_workers_grace_s: float = Field(default=5.0, ge=0, le=600)
    """Seconds that a request waits when there is no decode worker"""

    claim_within_s: float = Field(default=30.0, ge=0, le=600)
    """Seconds that sequences which outlive a router wait for their clients; 0: they are computed again"""

    stop_grace_s: float = Field(default=5.0, ge=0, le=60)
    """Seconds for running streams at `baton down`, while new requests are refused"""

    write_timeout_s: float = Field(default=30.0, ge=0)
    """Seconds after which a client that reads nothing of its stream is cut off; 0: never"""

    state_file: str = ""
    """File that keeps what was learned of output lengths over a restart; empty: not kept"""


class PoolPlacement(_Section):
    """What each worker of a pool takes of its node, and what the node must be."""

    cpus: float = Field(default=0.0, ge=0)
    """Cores; also the worker's threads, where those are auto"""

    gpus: float = Field(default=0.0, ge=0)
    """GPUs; a fraction shares one"""

    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Ray's custom resources, such as { baton_prefill = 1 }"""

    labels: dict[str, str] = {}
    """Ray labels of the node, such as { "ray.io/accelerator-type" = "H100" }; "!H100" and "in(H100, H200)" work too"""

    env: dict[str, str] = {}
    """Environment variables, such as { UCX_TLS = "rc,cuda", UCX_NET_DEVICES = "mlx5_0:1" }"""


class PlacementSection(_Section):
    """On which nodes workers are placed; each pool has a table of its own."""

    strategy: Literal["free", "pack", "spread"] = "free"
    """free: each worker by itself; pack: prefill and decode workers on one node; spread: each on a node of its own"""

    prefill: PoolPlacement = PoolPlacement()
    decode: PoolPlacement = PoolPlacement()
    mixed: PoolPlacement = PoolPlacement()


class AccessSection(_Section):
    """Who may call, and how much (docs/security.md). Files are read again when they change."""

    tls_certificate: str = ""
    """PEM file; with tls_key, both gRPC servers speak TLS; empty: plain text"""

    tls_key: str = ""
    """PEM file with the certificate's private key"""

    client_ca: str = ""
    """PEM file; only clients with a certificate of this CA may connect (mutual TLS)"""

    tokens_file: str = ""
    """TOML file of token hashes, tenants and roles (`baton token new`); empty: any client may call"""

    share_prefixes: bool = False
    """Share the prefix cache between tenants, who may then tell by the time what others have sent"""

    open_admin: bool = False
    """Allow administration from other machines without tokens or mutual TLS"""

    max_prompt_tokens: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Longest prompt; auto: the model's context"""

    max_message_mib: int = Field(default=64, ge=1, le=1024)
    """Largest request message in MiB"""

    max_streams_per_tenant: int = Field(default=0, ge=0)
    """Answers under way at once; 0: no limit"""


class LoggingSection(_Section):
    """What router and workers log (docs/operations.md)."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe lines that are logged; debug: also each request's end"""


class BatonConfig(_Section):
    """A whole configuration."""

    model: ModelSection = ModelSection()
    pools: PoolsSection = PoolsSection()
    engine: EngineSection = EngineSection()
    router: RouterSection = RouterSection()
    placement: PlacementSection = PlacementSection()
    access: AccessSection = AccessSection()
    logging: LoggingSection = LoggingSection()


def parse_config(text: str = "", overrides: dict[str, dict[str, Any]] | None = None) -> BatonConfig:
    """A configuration from TOML text, with flags (section → key → value, None for "not given") on top.

    Raises `ConfigError`: one sentence that names the key, and the nearest known one if it is unknown.
    """
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and numbers or brackets without end
        raise ConfigError(f"The configuration is not valid TOML: {error}.") from None
    for section, keys in (overrides or {}).items():
        given = {key: value for key, value in keys.items() if value is not None}
        if given:
            values[section] = {**values.get(section, {}), **given}
    try:
        config = BatonConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    if config.pools.prefill + config.pools.decode + config.pools.mixed == 0:
        raise ConfigError("All pools are empty: give at least one worker, such as prefill = 1 and decode = 1.")
    if config.pools.mixed == 0 and config.pools.decode == 0:
        raise ConfigError("No pool decodes: give at least one decode or mixed worker.")
    return config


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [
        str(part)
        for part in first["loc"]
        if part not in ("int", "float", "constrained-int", "constrained-float") and not str(part).startswith("literal")
    ]
    name = ".".join(path)
    if first["type"] != "extra_forbidden":
        given = first["input"] if not isinstance(first["input"], dict) else "a table"
        return f"The configuration's {name} is {given!r}: {first['msg'].lower()}."
    section: Any = BatonConfig
    for part in path[:-1]:
        section = section.model_fields[part].annotation
    known = list(section.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.0)
    where = f"section [{'.'.join(path[:-1])}]" if path[:-1] else "file"
    return f"The configuration {where} has no key {path[-1]!r}; did you mean {near[0]!r}?"
