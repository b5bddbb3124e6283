"""The configuration file: one TOML document whose every key has a default.

    [model]     path, dtype, context_tokens, generation_config
    [pools]     prefill, decode, mixed
    [engine]    page_size, num_pages, kv_memory_gib, chunk_tokens, mixed_chunk_tokens, max_batch, threads,
                checksum_every, swap_memory_gib, write_stall_s, device, gpu_memory_fraction, cuda_graphs, attention,
                transport
    [router]    host, port, admin_host, admin_port, policy, refuse_late, auto_rebalance, max_queued, lost_after_s,
                no_workers_grace_s, claim_within_s, stop_grace_s, write_timeout_s, state_file
    [placement] strategy; and per pool, [placement.prefill] and so on: cpus, gpus, resources, labels, env
    [access]    tls_certificate, tls_key, client_ca, tokens_file, share_prefixes, open_admin,
                max_prompt_tokens, max_message_mib, max_streams_per_tenant
    [logging]   level

"auto" means: worked out at start from the machine and the model (baton/config/resolve.py), and printed.
"""

from __future__ import annotations

import difflib
import tomllib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from baton.config import defaults
from baton.protocol.errors import ConfigError

Auto = Literal["auto"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    path: str = ""  # a folder or a Hugging Face hub id; empty: the built-in model
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context_tokens: int | Auto = "auto"
    generation_config: Literal["auto", "off"] = "auto"  # whether its sampling defaults apply


class PoolsSection(_Section):
    prefill: int = Field(default=1, ge=0, le=1024)
    decode: int = Field(default=1, ge=0, le=1024)
    mixed: int = Field(default=0, ge=0, le=1024)


class EngineSection(_Section):
    page_size: Literal[1, 2, 4, 8, 16, 32, 64, 128] = 16
    num_pages: int | Auto = "auto"
    kv_memory_gib: float | Auto = "auto"
    chunk_tokens: int | Auto = "auto"
    mixed_chunk_tokens: int | Auto = "auto"
    max_batch: int | Auto = "auto"
    threads: int | Auto = "auto"
    checksum_every: int = Field(default=defaults.CHECKSUM_EVERY, ge=0)
    swap_memory_gib: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Auto = "auto"  # 0: off
    write_stall_s: float = Field(default=defaults.WRITE_STALL_S, ge=0)  # 0: never
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$")] = "auto"
    gpu_memory_fraction: Annotated[float, Field(ge=0.05, le=0.98, allow_inf_nan=False)] | Auto = "auto"
    cuda_graphs: bool = True
    attention: Literal["auto", "fa2", "fa3"] = "auto"
    transport: str = defaults.TRANSPORT


class RouterSection(_Section):
    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=50052, ge=0, le=65535)
    policy: str = defaults.POLICY
    refuse_late: bool = True
    auto_rebalance: bool = False
    max_queued: int = Field(default=defaults.MAX_QUEUED, ge=1)
    lost_after_s: float = Field(default=defaults.LOST_AFTER_S, gt=0)
    no_workers_grace_s: float = Field(default=defaults.NO_WORKERS_GRACE_S, ge=0, le=600)
    claim_within_s: float = Field(default=defaults.CLAIM_WITHIN_S, ge=0, le=600)
    stop_grace_s: float = Field(default=defaults.STOP_GRACE_S, ge=0, le=60)
    write_timeout_s: float = Field(default=defaults.WRITE_TIMEOUT_S, ge=0)
    state_file: str = ""


class PoolPlacement(_Section):
    """What each worker of a pool takes of its node, and what the node must be."""

    cpus: float = Field(default=0.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}  # Ray's custom resources
    labels: dict[str, str] = {}  # Ray's label selector: values may be "H100", "!H100", "in(H100, H200)"
    env: dict[str, str] = {}  # environment variables of the worker's process


class PlacementSection(_Section):
    strategy: Literal["free", "pack", "spread"] = "free"
    prefill: PoolPlacement = PoolPlacement()
    decode: PoolPlacement = PoolPlacement()
    mixed: PoolPlacement = PoolPlacement()


class AccessSection(_Section):
    tls_certificate: str = ""
    tls_key: str = ""
    client_ca: str = ""
    tokens_file: str = ""
    share_prefixes: bool = False
    max_prompt_tokens: Annotated[int, Field(ge=1)] | Auto = "auto"
    max_message_mib: int = Field(default=defaults.MAX_MESSAGE_MIB, ge=1, le=1024)
    max_streams_per_tenant: int = Field(default=0, ge=0)
    open_admin: bool = False


class LoggingSection(_Section):
    level: Literal["debug", "info", "warning", "error"] = defaults.LOG_LEVEL


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
