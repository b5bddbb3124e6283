"""Several sequences of one prompt: a request each, of which the first computes the prompt for all.

The others are submitted when the first has its first token. By then the prompt's full pages are in the prefix cache of
the worker that computed it, so that each of the others prefills the last page's tokens alone.
"""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from baton.protocol.request import Request


def seed_of(seed: int, index: int) -> int:
    """The seed of a prompt's sequence number `index`, from that of its request; number 0 has the request's own.

    The others have the first 63 bits of a digest of both, so that requests with neighbouring seeds share no sequence.
    """
    if not index:
        return seed
    return int.from_bytes(blake2b(struct.pack("<qq", seed, index), digest_size=8).digest(), "little") >> 1


def sibling(request: Request, index: int, request_id: str) -> Request:
    """The request of a prompt's sequence number `index`; log-probabilities of the prompt come with number 0 alone."""
    sampling = request.sampling
    if index:
        assert sampling.seed is not None, "The gateway draws a seed for every request"
        sampling = replace(sampling, seed=seed_of(sampling.seed, index), prompt_logprobs=None)
    return replace(request, request_id=request_id, sampling=sampling)


@dataclass(eq=False)
class Siblings:
    """The turns of sequences numbered from 0, `each` for every prompt: those of the first prompt come first."""

    each: int
    _begun: defaultdict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))  # By prompt

    async def turn(self, number: int) -> None:
        """Wait until this sequence may be submitted: at once if it is its prompt's first."""
        prompt, index = divmod(number, self.each)
        if index:
            await self._begun[prompt].wait()

    def begun(self, number: int) -> None:
        """This sequence has a token, or has ended."""
        self._begun[number // self.each].set()
