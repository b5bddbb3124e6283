"""Cluster states to place requests on: workers with round figures, so that expectations can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from baton.protocol.request import Objectives
from baton.protocol.session_messages import PagesChanged
from baton.protocol.worker import Endpoint, PageLayout, RoleName, WorkerInfo
from baton.router.policy.cluster_state import ClusterState, RunningSequence
from baton.router.policy.latency_model import StepCosts
from baton.router.policy.output_length import point
from baton.router.policy.placement import PlacementInput

PAGE_SIZE, CHUNK, MIXED_CHUNK = 16, 1024, 256
PREFIX = tuple(range(100, 160))  # pages of 960 tokens
COSTS = StepCosts(1e-3, 1e-4, 0.0, 1e-3, 0.0)
"""A step takes 1 ms, a prompt token 0.1 ms, a decoding sequence 1 ms."""


def worker_info(name: str, num_pages: int = 1000, max_batch: int = 64) -> WorkerInfo:
    """A worker whose role is its name up to the dash."""
    layout = PageLayout(num_pages, 1, PAGE_SIZE, 1, 1, "float32", "model")
    role = RoleName(name.split("-")[0])
    return WorkerInfo(name, "1", role, 0, Endpoint(f"{name}:1", layout), CHUNK, max_batch, MIXED_CHUNK)


def cluster_of(*names: str, costs: StepCosts = COSTS, num_pages: int = 1000) -> ClusterState:
    """Registered workers that have nothing to do."""
    state = ClusterState(prior=costs)
    for name in names:
        state.register(worker_info(name, num_pages), 0.0)
    return state


def cache(state: ClusterState, worker: str, keys: Sequence[int]) -> None:
    """Let the worker say that it has these pages and no others."""
    assert state.on_pages(worker, PagesChanged(1, tuple(keys), (), snapshot=True))


def occupy(state: ClusterState, worker: str, seconds: float) -> None:
    """Let prompt work of so many seconds wait there, in a request of its own."""
    view = state.workers[worker]
    tokens = round(seconds / (COSTS.prefill_token_s + COSTS.step_s / CHUNK))
    state.assign(worker, f"work {len(view.assigned)} of {worker}", tokens, (), 0.0)


def decode(state: ClusterState, worker: str, count: int, tpot_s: float | None = None, tokens: int = 160) -> None:
    """Let so many sequences decode there."""
    already = len(state.workers[worker].running)
    for index in range(already, already + count):
        state.expect(worker, f"sequence {index} of {worker}", RunningSequence(tokens, point(160), tpot_s))


def fill(state: ClusterState, worker: str, pages_left: int) -> None:
    """Let the worker report that it has only so many pages to promise."""
    view = state.workers[worker]
    state.report(replace(view.load, pages_free=pages_left, pages_cached=0), 0.0)


def item(request_id: str = "r", tokens: int = 1000, ttft_s: float | None = None, **other: object) -> PlacementInput:
    """A request that waits for its placement; its answer has 160 tokens."""
    tpot_s = other.pop("tpot_s", None)
    objectives = Objectives(ttft_s, tpot_s)  # type: ignore[arg-type]
    return PlacementInput(request_id, tokens, output=point(160), objectives=objectives, **other)  # type: ignore[arg-type]
