"""One parser of bytes from outside: how inputs for it are made, and how it is fed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from baton.protocol.errors import BatonError


@dataclass(frozen=True, slots=True)
class Target:
    """`feed` may raise what is `allowed` and nothing else."""

    name: str
    make: Callable[[random.Random], bytes]
    feed: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...] = (BatonError,)

    def try_one(self, rng: random.Random) -> bool:
        """Feed one input; False when it was refused. Anything that must not happen raises, with the input as a note."""
        data = self.make(rng)
        try:
            self.feed(data)
        except self.allowed:
            return False
        except Exception as error:
            error.add_note(f"{self.name} was fed {data[:2000]!r}")
            raise
        return True
