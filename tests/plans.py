"""Routers and gateways that a test starts in its own process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.config.process_config import GatewayConfig, ResolvedModel, RouterConfig
from baton.config.schema import AccessSection, GatewaySection, RouterSection
from baton.gateway.build import RunningGateway, start_gateway
from baton.router.build import RunningRouter, start_router

LOST_AFTER_S = 3.0


def router_config(
    checkpoint: Path, *, access: AccessSection | None = None, worker_host: str = "127.0.0.1", **router: Any
) -> RouterConfig:
    """A float32 router on free ports; `router` are keys of its section."""
    section = RouterSection.model_validate(
        {"admin_port": 0, "admin_http_port": 0, "lost_after_s": LOST_AFTER_S, "max_queued": 8, **router}
    )
    return RouterConfig(_model(checkpoint), "m", section, worker_host, access=access or AccessSection())


def gateway_config(
    checkpoint: Path,
    router_address: str = "tcp://127.0.0.1:9",
    *,
    access: AccessSection | None = None,
    worker_host: str = "127.0.0.1",
    **gateway: Any,
) -> GatewayConfig:
    """A gateway on free ports; `gateway` are keys of its section."""
    section = GatewaySection.model_validate({"port": 0, "http_port": 0, **gateway})
    return GatewayConfig(
        name="gateway-0",
        router_address=router_address,
        model=_model(checkpoint),
        model_name="m",
        page_size=16,
        gateway=section,
        worker_host=worker_host,
        access=access or AccessSection(),
    )


def _model(checkpoint: Path) -> ResolvedModel:
    return ResolvedModel(path=str(checkpoint), dtype="float32", context_tokens=256)


@dataclass(eq=False)
class Front:
    """A router and a gateway that has registered with it, without workers."""

    router: RunningRouter
    gateway: RunningGateway

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self.gateway.addresses.public

    async def stop(self) -> None:
        """Stop both at once."""
        await self.gateway.stop(0.0)
        await self.router.stop(0.0)


async def start_front(plan: RouterConfig, **gateway: Any) -> Front:
    """Start a router and a gateway for it; `gateway` are keys of its section. Raises `ConfigError`."""
    router = await start_router(plan)
    try:
        plan_of_gateway = gateway_config(
            Path(plan.model.path),
            router.addresses.worker,
            access=plan.access,
            worker_host=plan.worker_host,
            **gateway,
        )
        front = Front(router, await start_gateway(plan_of_gateway))
    except BaseException:
        await router.stop(0.0)
        raise
    await front.gateway.registered()
    return front
