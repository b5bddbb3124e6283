"""A rank other than the first: it obeys the leader's commands in order, until either of them ends."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from baton.engine.ranks import ProcessGroupRanks
from baton.logs import log
from baton.worker.background_transport import Opened
from baton.worker.core.role import SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.core.session_commands import Connect, Disconnect, NewTransport
from baton.worker.rank import Rank, load_rank
from baton.worker.ranks.channel import Channel, join
from baton.worker.ranks.commands import Checksums, Command, Copied, ExpectPeers, Failed, HeadChecksums, RankPlan, Step
from baton.worker.ranks.lifeline import end_with_leader
from baton.worker.step_wait import await_step

POLL_S = 0.001  # How often to poll for the ends of writes and for a peer's


def follow(plan: RankPlan) -> None:
    """Serve the leader. The process ends with it, or after an error, whose reason the leader gets."""
    channel, lifeline = join(plan.folder, plan.authkey, plan.rank)
    end_with_leader(lifeline, plan.folder)
    try:
        engine = plan.worker.engine
        torch.set_num_threads(engine.threads)
        ranks = ProcessGroupRanks(plan.folder, plan.rank, engine.ranks, engine.device)
        rank = load_rank(plan.worker, plan.agent, lambda stage: None, ranks)
        channel.send(Opened(rank.transport.endpoint))
        Follower(channel, rank).run()
    except (EOFError, ConnectionError):
        os._exit(0)  # The leader has ended
    except Exception as error:
        log.exception(f"An error ended rank {plan.rank}.")
        channel.send(Failed(str(error) or type(error).__name__))
        os._exit(1)


@dataclass(eq=False)
class Follower:
    """The loop of a rank that has loaded."""

    channel: Channel
    rank: Rank
    _expects_peers: bool = False

    def run(self) -> None:
        """Obey; raises `EOFError` when the leader has ended, once the transport is closed."""
        transport = self.rank.transport
        try:
            while True:
                if self.channel.readable(POLL_S if self._expects_peers or transport.in_flight else None):
                    self._obey(self.channel.receive())
                for event in transport.poll():
                    if isinstance(event, Opened | WriteEnded):  # Notices go to rank 0
                        self.channel.send(event)
        finally:
            transport.close()

    def _obey(self, command: Command) -> None:
        executor, transport, host_pages = self.rank.executor, self.rank.transport, self.rank.host_pages
        match command:
            case Step(arrays):
                await_step(executor, executor.follow(arrays), transport)
            case WritePages():
                transport.write(command)
            case HeadChecksums(page):
                self.channel.send(Checksums(tuple(executor.head_checksums(page))))
            case SwapOut(pages, slots):
                host_pages.copy_out(pages, slots)
                self.channel.send(Copied())
            case SwapIn(slots, pages):
                host_pages.copy_in(slots, pages)
            case ExpectPeers(expected):
                self._expects_peers = expected
            case Connect(endpoint):
                transport.connect(endpoint)
            case Disconnect(agent):
                transport.disconnect(agent)
            case NewTransport(agent):
                transport.renew(agent)
