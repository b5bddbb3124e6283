"""A live cluster without Ray: router and gateways in this process, and one process for each worker."""

from __future__ import annotations

import asyncio
import multiprocessing as mp
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baton.config.process_config import GatewayConfig, ResolvedEngine, ResolvedModel, RouterConfig, WorkerConfig
from baton.config.schema import GatewaySection, RouterSection
from baton.gateway.build import RunningGateway, start_gateway
from baton.harness.forked import forked
from baton.harness.gateway_process import serve_clients
from baton.harness.worker_process import work
from baton.links.keys import peer_keys
from baton.protocol.link_keys import PeerKeys
from baton.protocol.sampling import SamplingDefaults
from baton.router.build import RunningRouter, start_router
from baton.router.core.operation import Operation, OperationSpec
from baton.router.policy.cluster_state import ClusterState

LOAD_TIMEOUT_S = 120.0


@dataclass(eq=False)
class ProcessCluster:
    """Starts with `async with`; all of its processes have ended after the block."""

    router_config: RouterConfig
    worker_config: WorkerConfig  # of every worker, except for name, role and address
    pools: Mapping[str, int]  # role → workers
    ranks: Mapping[str, int] = field(default_factory=dict)  # role → processes of each worker; 1 unless given
    first: Mapping[str, Callable[[], None]] = field(default_factory=dict)  # what a process does first, by name
    environment: Mapping[str, str] = field(default_factory=dict)  # of every worker
    num_gateways: int = 1
    sampling_defaults: SamplingDefaults = field(default_factory=dict)  # of its gateways
    state: ClusterState | None = None  # in place of the router's own, to record what workers report
    router: RunningRouter = field(init=False)
    gateways: list[RunningGateway] = field(default_factory=list)
    processes: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[tuple[str, str]]:
        return [(f"{role}-{index}", role) for role, count in self.pools.items() for index in range(count)]

    async def __aenter__(self) -> ProcessCluster:
        self.router = await start_router(self.router_config, self.state)
        try:
            for index in range(self.num_gateways):
                await self.add_gateway(f"gateway-{index}")
            for name, role in self.names:
                self.spawn(name, role)
            await self.until(self._all_there)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def add_gateway(self, name: str) -> RunningGateway:
        """Start a gateway, on a port of its own."""
        plan = gateway_plan(
            self.router_config, self.worker_config, name, self.router.worker_address, self.sampling_defaults
        )
        plan = replace(plan, link_keys=self._keys(name))
        self.gateways.append(await start_gateway(plan))
        return self.gateways[-1]

    @property
    def gateway(self) -> RunningGateway:
        """The first gateway."""
        return self.gateways[0]

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.gateway.port}"

    @property
    def http_address(self) -> str:
        """Where HTTP clients connect."""
        return f"127.0.0.1:{self.gateway.http_port}"

    @property
    def admin_address(self) -> str:
        return f"127.0.0.1:{self.router.admin_port}"

    async def spawn_gateway(self, name: str, port: int = 0, host: str = "127.0.0.1") -> str:
        """Start a gateway in a process of its own, also a second time; returns its address once it has registered."""
        plan = gateway_plan(
            self.router_config, self.worker_config, name, self.router.worker_address, self.sampling_defaults
        )
        section = plan.gateway.changed(host=host, port=port)
        plan = replace(plan, gateway=section, worker_host=host, link_keys=self._keys(name))
        ours, theirs = mp.Pipe(duplex=False)
        self.processes[name] = forked(serve_clients, plan, theirs, self.first.get(name), name=name)
        self.processes[name].start()
        theirs.close()  # A gateway that ends at once closes the pipe
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            return str(await asyncio.to_thread(ours.recv))

    async def restart_router(self) -> None:
        """End the router at once, as its process's death would, and start another one on its port for workers."""
        former = self.router
        former.task.cancel()
        former.driver.link.close()
        await former.stop(0.0)
        port = int(former.worker_address.rsplit(":", 1)[1])
        self.router = await start_router(replace(self.router_config, worker_port=port))

    def _all_there(self) -> bool:
        """Whether every worker has registered; raises `ChildProcessError` when one ended instead."""
        for name, process in self.processes.items():
            if process.exitcode is not None:
                raise ChildProcessError(f"{name} ended with code {process.exitcode} before it served.")
        core = self.router.driver.core
        return len(core.state.workers) == len(self.names) and len(core.gateways) == len(self.gateways)

    def _keys(self, name: str) -> PeerKeys | None:
        secret = self.router_config.link_secret
        return peer_keys(secret, name) if secret else None

    def spawn(self, name: str, role: str) -> None:
        """Start a worker, also a second time."""
        address = self.router.worker_address
        engine = self.worker_config.engine.changed(ranks=self.ranks.get(role, 1))
        plan = replace(self.worker_config, name=name, role=role, router_address=address, link_keys=self._keys(name))
        plan = replace(plan, engine=engine)
        self.processes[name] = forked(work, plan, self.first.get(name), dict(self.environment), name=name)
        self.processes[name].start()

    async def until(self, condition: Callable[[], bool], timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Wait for a condition that other processes bring about; raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_idle(self) -> None:
        """Wait until no request is live and no worker holds a page; raises `TimeoutError`."""
        core = self.router.driver.core
        await self.until(lambda: not core.live)
        await self.until(lambda: not any(view.load.pages_in_use for view in core.state.workers.values()))

    async def __aexit__(self, *error: object) -> None:
        for gateway in self.gateways:
            await gateway.stop(0.0)
        for process in self.processes.values():
            process.kill()
        self.router.task.cancel()
        self.router.driver.link.close()  # At once, or it would report the processes as lost
        await self.router.stop(0.0)
        for process in self.processes.values():
            process.join()


async def operate(cluster: ProcessCluster, spec: OperationSpec) -> Operation:
    """An operator's command, from its start to its end."""
    driver = cluster.router.driver
    operation = driver.start_operation("", spec, False)
    async for moved in driver.watch(operation.operation_id):
        operation = moved
    return operation


def gateway_plan(
    router: RouterConfig, worker: WorkerConfig, name: str, router_address: str, sampling: SamplingDefaults | None = None
) -> GatewayConfig:
    """The plan of a gateway on a free port, for a router and workers with these plans."""
    return GatewayConfig(
        name=name,
        router_address=router_address,
        model=router.model,
        model_name=router.model_name,
        page_size=worker.engine.page_size,
        gateway=GatewaySection(port=0, http_port=0),
        worker_host=router.worker_host,
        sampling_defaults=sampling or {},
        access=router.access,
        logging=router.logging,
        tracing=router.tracing,
    )


def plans(
    folder: Path | str,
    context_tokens: int,
    num_pages: int,
    *,
    policy: str = "predicted_latency",
    chunk_tokens: int = 256,
    max_batch: int = 16,
    lost_after_s: float = 60.0,
) -> tuple[RouterConfig, WorkerConfig]:
    """The plans of a float32 cluster on this machine: one thread per worker, checksums over every page that is sent."""
    model = ResolvedModel(path=str(folder), dtype="float32", context_tokens=context_tokens)
    listening = RouterSection(admin_port=0, admin_http_port=0, policy=policy, lost_after_s=lost_after_s)
    engine = ResolvedEngine(
        num_pages=num_pages,
        chunk_tokens=chunk_tokens,
        mixed_chunk_tokens=chunk_tokens,
        max_batch=max_batch,
        threads=1,
        gpu_memory_fraction=0.9,
        device="cpu",
        checksum_every=1,
    )
    return RouterConfig(model, "measured", listening, "127.0.0.1"), WorkerConfig("", "", "", model, engine)
