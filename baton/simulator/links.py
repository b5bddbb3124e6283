"""A connection between two processes: a queue of messages in each direction, which keep their order, as TCP keeps it.

The client's end connects, sees its connection break and connects again; the server's end sees neither. What a break
leaves of the messages on their way is drawn at random, within what TCP and ZeroMQ may do.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


class Process(Protocol):
    """An end of a link."""

    @property
    def blocked(self) -> bool:
        """Whether it takes no message now."""
        ...


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The client's end sees that its connection is up, or broken."""

    up: bool


@dataclass(eq=False, slots=True)
class Wire:
    """One direction of a link. Its items: `LinkChanged` and messages; the client's with its incarnation."""

    link: Link
    receiver: Process
    handle: Callable[[list[Any]], None]
    to_server: bool
    queue: deque[Any] = field(default_factory=deque)
    arrived: int = 0  # of the first items: they have reached the receiver's machine, so they outlive the connection
    due: bool = False  # a delivery is to come
    once: bool = False  # nothing arrives twice

    @property
    def ready(self) -> int:
        """Items that the receiver would take now."""
        if not self.queue or self.receiver.blocked:
            return 0
        return len(self.queue) if self.link.up or not self.to_server else min(self.arrived, len(self.queue))

    def take(self, count: int) -> list[Any]:
        """Remove the first `count` items."""
        self.arrived = max(0, self.arrived - count)
        return [self.queue.popleft() for _ in range(count)]

    def clear(self) -> None:
        """Lose everything."""
        self.queue.clear()
        self.arrived = 0


@dataclass(eq=False, slots=True)
class Link:
    """A link of a client's end with a server's end; messages to the client are lost while it is not `up`."""

    out: Wire = field(init=False)  # to the server
    back: Wire = field(init=False)  # to the client
    up: bool = False

    @classmethod
    def between(
        cls,
        client: Process,
        server: Process,
        at_client: Callable[[list[Any]], None],
        at_server: Callable[[list[Any]], None],
    ) -> Link:
        """A link that is not up yet, and what its ends do with items."""
        link = cls()
        link.out = Wire(link, server, at_server, True)
        link.back = Wire(link, client, at_client, False)
        return link

    def connect(self) -> bool:
        """The connection comes up; False if it was."""
        was_up, self.up = self.up, True
        if not was_up:
            self.back.queue.append(LinkChanged(True))
        return not was_up

    def disconnect(self, rng: random.Random) -> bool:
        """The connection breaks; False if there was none.

        Of the client's messages the first have arrived, others are lost, and the last wait for the next connection.
        Of the server's the first have arrived and the others are lost.
        """
        if not self.up:
            return False
        self.up = False
        sent = list(self.out.queue)
        arrived = rng.randint(0, len(sent))
        waiting = rng.randint(arrived, len(sent))
        self.out.queue = deque(sent[:arrived] + sent[waiting:])
        self.out.arrived = arrived
        coming = list(self.back.queue)
        kept = rng.randint(0, len(coming))
        self.back.queue = deque(coming[:kept] + [one for one in coming[kept:] if isinstance(one, LinkChanged)])
        self.back.queue.append(LinkChanged(False))
        return True

    def end(self, rng: random.Random) -> None:
        """The client's process ends: some of what it had sent arrives."""
        sent = list(self.out.queue) if self.up else list(self.out.queue)[: self.out.arrived]
        self.up = False
        self.out.queue = deque(sent[: rng.randint(0, len(sent))])
        self.out.arrived = len(self.out.queue)
        self.back.clear()
