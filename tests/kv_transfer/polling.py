"""Shared by the tests of transports: a page layout, storage with random pages for each rank, and polling."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from baton.kv_transfer.transport import Notice, TransferEvent, Transport, WriteDone, WriteFailed
from baton.protocol.head_slices import heads_of
from baton.protocol.worker import Endpoint, PageLayout

LAYOUT = PageLayout(32, 2, 4, 2, 8, "float32", "m")


def random_pages(seed: int, layout: PageLayout = LAYOUT) -> torch.Tensor:
    """Storage in which every value is random."""
    return torch.rand(layout.shape, generator=torch.Generator().manual_seed(seed))


def slices(pages: torch.Tensor, num_ranks: int) -> list[torch.Tensor]:
    """The storage of each rank of a worker that keeps these pages."""
    ranks = [heads_of(pages.shape[1], num_ranks, rank) for rank in range(num_ranks)]
    return [pages[:, heads.start : heads.stop].clone() for heads in ranks]


def joined(ranks: Sequence[Transport]) -> Endpoint:
    """The endpoint of a worker of several ranks."""
    return replace(ranks[0].endpoint, ranks=tuple(rank.endpoint.ranks[0] for rank in ranks))


def poll_until(done: Callable[[list[TransferEvent]], bool], *transports: Transport) -> list[list[TransferEvent]]:
    """Poll all sides until `done` holds for their events together."""
    events: list[list[TransferEvent]] = [[] for _ in transports]
    deadline = time.monotonic() + 20
    while not done([event for side in events for event in side]):
        assert time.monotonic() < deadline, events
        for side, transport in zip(events, transports, strict=True):
            side += transport.poll()
    return events


def ended(count: int) -> Callable[[list[TransferEvent]], bool]:
    """At least `count` writes have ended."""
    return lambda events: sum(isinstance(event, WriteDone | WriteFailed) for event in events) >= count


def noticed(count: int) -> Callable[[list[TransferEvent]], bool]:
    """At least `count` notices have arrived."""
    return lambda events: sum(isinstance(event, Notice) for event in events) >= count
