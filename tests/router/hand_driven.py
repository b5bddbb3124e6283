"""A router core driven by hand: requests as a gateway submits them, and what the core sends back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from baton.protocol.gateway_messages import GatewayInfo, RegisterGateway, RequestEnded, StopRequest, Submit
from baton.protocol.messages import Work
from baton.protocol.prefix_hash import page_hashes, page_keys, root_hash
from baton.protocol.request import Request, SamplingParams
from baton.protocol.session_messages import Register
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.router.core.commands import Command, SendToGateway, SendToWorker
from baton.router.core.core import RouterCore

GATEWAY, PAGE_SIZE, MODEL = "gateway-0", 16, "model"
T = TypeVar("T")


def worker_info(
    name: str, role: RoleName, num_pages: int = 100, max_batch: int = 64, incarnation: str = "1"
) -> WorkerInfo:
    """A worker with pages of PAGE_SIZE tokens."""
    layout = PageLayout(num_pages, 1, PAGE_SIZE, 1, 1, "float32", MODEL)
    agent = f"{name}:{incarnation}"
    return WorkerInfo(name, incarnation, role, 0, Endpoint(agent, layout), 1024, max_batch)


def join(core: RouterCore, name: str, role: RoleName, now: float = 0.0, **shape: Any) -> list[Command]:
    """A worker registers."""
    return core.on_message(name, Register(worker_info(name, role, **shape)), now)


def join_gateway(
    core: RouterCore, name: str = GATEWAY, incarnation: str = "1", now: float = 0.0, request_ids: tuple[str, ...] = ()
) -> list[Command]:
    """A gateway registers, with its live streams."""
    info = GatewayInfo(name, incarnation, f"tcp://{name}")
    return core.on_frame(name, incarnation, [RegisterGateway(info, request_ids)], now)


def submission(
    request: Request, now: float | None = None, emitted: tuple[int, ...] = (), resumed: bool = False
) -> Submit:
    """The request as its gateway submits it, at its arrival or later."""
    now = request.arrival_s if now is None else now
    return Submit(
        request_id=request.request_id,
        digest=request.digest,
        num_prompt_tokens=len(request.prompt),
        max_tokens=request.sampling.max_tokens,
        page_keys=page_keys(page_hashes(request.prompt, PAGE_SIZE, root_hash(MODEL, request.tenant))),
        work=Work(request, emitted),
        num_emitted=len(emitted),
        resumed=resumed,
        tenant=request.tenant,
        priority=request.priority,
        objectives=request.objectives,
        age_s=now - request.arrival_s,
        deadline_in_s=None if request.deadline_s is None else request.deadline_s - now,
        called_at_s=request.arrival_s,
    )


def ask(
    core: RouterCore,
    request: Request,
    now: float | None = None,
    emitted: tuple[int, ...] = (),
    resumed: bool = False,
    gateway: str = GATEWAY,
) -> list[Command]:
    """A gateway, which registers first if it has not, submits the request."""
    submit = submission(request, now, emitted, resumed)
    now = request.arrival_s if now is None else now
    orders = [] if gateway in core.gateways else join_gateway(core, gateway, now=now)
    return orders + core.on_message(gateway, submit, now)


def prompt_of(core: RouterCore, request_id: str, tokens: int, max_tokens: int = 10, now: float = 0.0) -> list[Command]:
    """A gateway submits a prompt of so many tokens."""
    return ask(core, Request(request_id, tuple(range(tokens)), SamplingParams(max_tokens=max_tokens), now))


def leave(core: RouterCore, request_id: str, now: float, gateway: str = GATEWAY) -> list[Command]:
    """The request's client is gone."""
    return core.on_message(gateway, StopRequest(request_id, 0, error="Cancelled", message="gone"), now)


def to_workers(commands: Iterable[Command], kind: type[T]) -> list[tuple[str, T]]:
    """The messages of one kind to workers."""
    return [
        (one.worker, one.message) for one in commands if isinstance(one, SendToWorker) and isinstance(one.message, kind)
    ]


def to_gateways(commands: Iterable[Command], kind: type[T]) -> list[tuple[str, T]]:
    """The messages of one kind to gateways."""
    return [
        (one.gateway, one.message)
        for one in commands
        if isinstance(one, SendToGateway) and isinstance(one.message, kind)
    ]


def end_of(commands: Iterable[Command]) -> RequestEnded:
    """The only end of a request among the commands."""
    ((_, ended),) = to_gateways(commands, RequestEnded)
    return ended
