"""The messages between rank 0 of a worker, the leader, and its other ranks, the followers.

A follower obeys commands in order and has finished each before it begins the next, so a write or copy that the leader
orders after a step reads what the step has written. Most commands are those that a session gives the leader's loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from baton.config.process_config import WorkerConfig
from baton.engine.step_arrays import StepArrays
from baton.worker.background_transport import Opened
from baton.worker.core.role import SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.core.session_commands import Connect, Disconnect, NewTransport


@dataclass(frozen=True, slots=True)
class RankPlan:
    """Everything a follower needs to start."""

    worker: WorkerConfig
    rank: int
    agent: str  # The name that peers write to at first
    folder: Path  # Where the ranks meet; readable by their user alone
    authkey: bytes = field(repr=False)


# Commands


@dataclass(frozen=True, slots=True)
class Step:
    """Compute a share of a step that the leader launches. No reply: the step's collectives order the ranks."""

    arrays: StepArrays


@dataclass(frozen=True, slots=True)
class HeadChecksums:
    """Answer with the `Checksums` of a page."""

    page: int


@dataclass(frozen=True, slots=True)
class ExpectPeers:
    """Poll the transport while idle, or stop to: a peer may write at any moment."""

    expected: bool


Command = Step | HeadChecksums | ExpectPeers | WritePages | SwapOut | SwapIn | Connect | Disconnect | NewTransport

# Replies


@dataclass(frozen=True, slots=True)
class Checksums:
    """CRC-32 of a page's bytes of each KV head of the follower."""

    heads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """The pages of a `SwapOut` may be overwritten."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The follower ends; `reason` is one sentence."""

    reason: str


Reply = Checksums | Copied | Failed | Opened | WriteEnded
"""`Opened` answers `NewTransport`, and is the first message of a follower: it has loaded. `WriteEnded` answers
`WritePages`."""
