"""Resolves every "auto" of a configuration, for a machine and a model. Pure: the facts are passed in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from baton.config.access import access_words
from baton.config.devices import ROLES, check_devices, device, memory_fraction, on_gpu
from baton.config.facts import MachineFacts, ModelFacts
from baton.config.memory import (
    WorkerMemory,
    check_memory,
    cluster_words,
    fixed_memory,
    kv_pages,
    memory_for_pages,
    swap_pages,
)
from baton.config.placement import check_placement, demand, gateways_here, placement_words
from baton.config.process_config import GatewayConfig, ResolvedEngine, ResolvedModel, RouterConfig, WorkerConfig
from baton.config.ray_names import GATEWAY
from baton.config.schema import BatonConfig
from baton.protocol.sampling import SamplingDefaults, default_words


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration without "auto"; `settings` is what `baton up` prints."""

    config: BatonConfig
    model: ModelFacts
    dtype: str
    context_tokens: int
    num_pages: int
    chunk_tokens: int
    mixed_chunk_tokens: int
    max_batch: int
    threads: int
    host_pages: int
    machine: MachineFacts

    @property
    def roles(self) -> list[tuple[str, str]]:
        """(worker name, role) of every worker to start."""
        pools = self.config.pools
        counts = (("prefill", pools.prefill), ("decode", pools.decode), ("mixed", pools.mixed))
        return [(f"{role}-{index}", role) for role, count in counts for index in range(count)]

    @property
    def gateways(self) -> list[str]:
        """The names of the gateways to start."""
        return [f"{GATEWAY}-{index}" for index in range(self.config.pools.gateways)]

    @property
    def settings(self) -> dict[str, str]:
        """The resolved values with their names, as text."""
        page_size = self.config.engine.page_size
        return {
            "model": self.model.name,
            "dtype": self.dtype,
            "context_tokens": self._context_words(),
            "sampling": self._sampling_words(),
            "page_size": str(page_size),
            "num_pages": f"{self.num_pages} per worker ({self.num_pages * page_size} tokens)"
            if self.num_pages
            else "as many as fit on each worker's GPU",
            "host_pages": f"{self.host_pages} per worker, for preempted sequences" if self.host_pages else "none",
            "chunk_tokens": f"{self.chunk_tokens}, {self.mixed_chunk_tokens} beside decodes",
            "max_batch": str(self.max_batch),
            **self._ranks_words(),
            **self._memory_words(),
            "threads": f"{self.threads} per process",
            **self._gpu_words(),
            "policy": self.config.router.policy,
            "access": access_words(self.config.access),
            **placement_words(self.config),
        }

    def worker_memory(self, role: str) -> WorkerMemory:
        """Use of the machine's own memory by a worker of this role; on a GPU, only its processes and swap are there."""
        gpu, ranks = on_gpu(self.config), demand(self.config, role).ranks
        fixed = _fixed_memory(self.model, self.dtype, gpu, self.chunk_tokens, self.max_batch, ranks)
        page_bytes = self.model.page_bytes(self.config.engine.page_size, self.dtype, ranks)
        kv_bytes = 0 if gpu else self.num_pages * page_bytes
        return replace(fixed, kv=kv_bytes, swap=self.host_pages * page_bytes)

    @property
    def memory(self) -> list[WorkerMemory]:
        """Use of the machine's own memory by each worker."""
        return [self.worker_memory(role) for _, role in self.roles]

    def _memory_words(self) -> dict[str, str]:
        if on_gpu(self.config):
            return {}
        each = {role: self.worker_memory(role).words for _, role in self.roles}
        equal = len(set(each.values())) == 1
        return {
            "worker_memory": self.memory[0].words if equal else "; ".join(f"{role}: {each[role]}" for role in each),
            "memory": cluster_words(self.memory, gateways_here(self.config), self.machine.free),
        }

    def _ranks_words(self) -> dict[str, str]:
        """The ranks of each pool's workers, as a setting to print; empty if every worker is one process."""
        ranks = {role: demand(self.config, role).ranks for _, role in self.roles}
        if set(ranks.values()) == {1}:
            return {}
        return {"tensor_parallel": ", ".join(f"{role} {count}" for role, count in ranks.items()) + " ranks per worker"}

    def _context_words(self) -> str:
        limit = self.model.context_limit if self.context_tokens == self.model.context_tokens else ""
        return f"{self.context_tokens}, because of {limit}" if limit else str(self.context_tokens)

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """The model's defaults of sampling parameters; the others have the defaults of `SamplingParams`."""
        return self.model.sampling if self.config.model.generation_config == "auto" else {}

    def _sampling_words(self) -> str:
        """The sampling of a request without sampling parameters, as text."""
        off = self.config.model.generation_config == "off"
        source = "generation_config off" if off else "the model's generation_config.json"
        return default_words(self.sampling_defaults, source if off or self.model.sampling else "Baton's defaults")

    def _gpu_words(self) -> dict[str, str]:
        """The use of GPUs by each pool, as a setting to print; empty without GPUs."""
        engine = self.config.engine
        pools = dict.fromkeys(role for _, role in self.roles)
        if not on_gpu(self.config):
            return {}
        parts = [f"{role} {device(self.config, role)}, {memory_fraction(self.config, role):g} of it" for role in pools]
        recording = [role for role in pools if engine.cuda_graphs and demand(self.config, role).ranks == 1]
        graphs = f"CUDA graphs on {' and '.join(recording)} workers" if recording else "no CUDA graphs"
        return {"gpu": f"{'; '.join(parts)}; {graphs}; {engine.attention} kernels"}

    def as_json(self) -> dict[str, Any]:
        """Plain values from which `from_json` restores this in another process."""
        return {**asdict(self), "config": self.config.model_dump(mode="json")}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Resolved:
        """The inverse of `as_json`."""
        given = {
            "config": BatonConfig.model_validate(values["config"]),
            "model": ModelFacts(**values["model"]),
            "machine": MachineFacts(**values["machine"]),
        }
        return Resolved(**{**values, **given})

    @property
    def _model(self) -> ResolvedModel:
        section = self.config.model
        return ResolvedModel.of(section, path=self.model.path, dtype=self.dtype, context_tokens=self.context_tokens)

    def router_config(self, worker_host: str) -> RouterConfig:
        """The router's configuration; `worker_host` is the address on which it listens for workers and gateways."""
        return RouterConfig(
            model=self._model,
            model_name=self.model.name,
            router=self.config.router,
            worker_host=worker_host,
            settings=self.settings,
            access=self.config.access,
            logging=self.config.logging,
            tracing=self.config.tracing,
        )

    def gateway_config(self, name: str, router_address: str, worker_host: str) -> GatewayConfig:
        """A gateway's configuration; `worker_host` is the address on which it listens for workers."""
        return GatewayConfig(
            name=name,
            router_address=router_address,
            model=self._model,
            model_name=self.model.name,
            page_size=self.config.engine.page_size,
            gateway=self.config.gateway,
            worker_host=worker_host,
            sampling_defaults=self.sampling_defaults,
            template_text=self.model.template_text,
            access=self.config.access,
            logging=self.config.logging,
            tracing=self.config.tracing,
        )

    def worker_config(self, name: str, role: str, router_address: str) -> WorkerConfig:
        """A worker's configuration; `role` is the value of a `RoleName`, `router_address` that of its link."""
        access, logging = self.config.access, self.config.logging
        return WorkerConfig(name, role, router_address, self._model, self._engine(role), access, logging)

    def _engine(self, role: str) -> ResolvedEngine:
        cpus = int(demand(self.config, role).cpus)
        return ResolvedEngine.of(
            self.config.engine,
            num_pages=self.num_pages,
            chunk_tokens=self.chunk_tokens,
            mixed_chunk_tokens=self.mixed_chunk_tokens,
            max_batch=self.max_batch,
            threads=cpus if cpus and self.config.engine.threads == "auto" else self.threads,
            host_pages=self.host_pages,
            device=device(self.config, role),
            gpu_memory_fraction=memory_fraction(self.config, role),
            ranks=demand(self.config, role).ranks,
        )


def resolve(config: BatonConfig, machine: MachineFacts, model: ModelFacts) -> Resolved:
    """Resolve every "auto". Raises `ConfigError` for a placement, devices or memory that cannot serve.

    On GPUs an automatic `num_pages` stays 0: each worker measures what fits after it has loaded its weights.
    """
    check_placement(config)
    check_devices(config)
    engine, gpu = config.engine, on_gpu(config)
    ranks = [demand(config, role).ranks for role in ROLES for _ in range(getattr(config.pools, role))]
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if gpu or machine.fast_bfloat16 else "float32"
    context = model.context_tokens
    if config.model.context_tokens != "auto":
        context = min(context, config.model.context_tokens)
    max_batch = (256 if gpu else 32) if engine.max_batch == "auto" else engine.max_batch
    page_bytes = model.page_bytes(engine.page_size, dtype, max(ranks))
    useful = max_batch * -(-context // engine.page_size)  # Pages of a full batch at full length
    largest_chunk = 8192 if gpu else 512
    chunk_tokens = min(largest_chunk, max(context, 16)) if engine.chunk_tokens == "auto" else engine.chunk_tokens
    fixed = [_fixed_memory(model, dtype, gpu, chunk_tokens, max_batch, each) for each in ranks]
    gateways = gateways_here(config)
    room = memory_for_pages(machine.free, fixed, gateways)
    num_pages = kv_pages(engine, gpu, page_bytes, useful, context, room.kv_bytes)
    room = room.without(0 if gpu else num_pages * page_bytes)
    resolved = Resolved(
        config=config,
        model=model,
        dtype=dtype,
        context_tokens=context,
        num_pages=num_pages,
        chunk_tokens=chunk_tokens,
        mixed_chunk_tokens=max(chunk_tokens // 4, 1)
        if engine.mixed_chunk_tokens == "auto"
        else min(engine.mixed_chunk_tokens, chunk_tokens),
        max_batch=max_batch,
        threads=max(1, machine.cores // sum(ranks)) if engine.threads == "auto" else engine.threads,
        host_pages=swap_pages(engine, page_bytes, num_pages or useful, room.swap_bytes),
        machine=machine,
    )
    if machine.all_workers_here and not gpu:
        check_memory(resolved.memory, gateways, machine.free, context)
    return resolved


def _fixed_memory(
    model: ModelFacts, dtype: str, gpu: bool, chunk_tokens: int, max_batch: int, ranks: int
) -> WorkerMemory:
    """A worker's memory before any page. With a GPU only the processes are in the machine's own memory."""
    step_values = chunk_tokens * model.layer_values + 2 * max_batch * model.vocab_size
    used = (0, 0) if gpu else (model.num_parameters, step_values)
    return fixed_memory(*used, 4 if dtype == "float32" else 2, ranks)
