"""A virtual cluster in which what happens next is picked at random: any order that the links allow.

Nothing takes time but what says so; a test can stop after each step, look, and go on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from baton.protocol.messages import Alive
from baton.protocol.request import Request
from baton.protocol.worker import RoleName
from baton.simulator.cluster import VirtualCluster
from baton.simulator.token_checker import Violation
from baton.simulator.virtual_worker import VirtualWorker


class SteppedCluster(VirtualCluster):
    """`step` makes one thing happen."""

    def add_pools(self, prefill: int = 2, decode: int = 2, mixed: int = 0) -> None:
        """Workers of every role, which have joined when this returns."""
        for role, count in ((RoleName.PREFILL, prefill), (RoleName.DECODE, decode), (RoleName.MIXED, mixed)):
            for index in range(count):
                self.add(f"{role.value}-{index}", role)
        self.settle()

    def submit_any(self, count: int, prompt: int = 24, output: int = 30) -> list[Request]:
        """Requests r0, r1, … of random prompts and lengths up to so many tokens."""
        rng = self.rng
        return [
            self.submit(f"r{index}", [rng.randrange(96) for _ in range(rng.randint(1, prompt))], rng.randint(1, output))
            for index in range(count)
        ]

    def silence(self, name: str) -> None:
        """Stop a worker in the middle of whatever it does, until the router has given it up."""
        self.workers[name].silent = True
        while name in self.core.state.workers:
            self.now += 0.1
            self.tick()

    def absorb_step(self, worker: VirtualWorker) -> bool:
        """The worker absorbs the step that it has computed, and often reports at once."""
        absorbed = super().absorb_step(worker)
        if absorbed and self.rng.random() < 0.5:
            self.report(worker)
        return absorbed

    def report(self, worker: VirtualWorker) -> None:
        """What the worker has to send arrives at once."""
        self.tick_worker(worker)
        while worker.outbox and self.receive(worker):
            pass

    def tick(self) -> None:
        """What is due at the router and at every worker. A report that has nothing to overtake arrives at once."""
        self.perform(self.core.tick(self.now))
        for worker in self.workers.values():
            if worker.silent or worker.leaving:
                continue
            if worker.serving:
                self.to_router(worker, [Alive()])
            if worker.outbox or not worker.serving:
                self.tick_worker(worker)
            else:
                self.report(worker)
        while self.to_kill:
            name = self.to_kill.pop()
            if name in self.workers:
                self.kill(name)

    def step(self) -> bool:
        """One randomly chosen delivery or engine step; False when nothing is left to happen."""
        actions: list[Callable[[], bool]] = []
        for worker in self.workers.values():
            actions += [partial(act, worker) for act in self.possible(worker).values()]
        self.network.expire(self.now)
        written = [(write, self.next_of(write)) for write in self.network.writes]
        actions += [partial(act, write) for write, act in written if act is not None]
        self.rng.shuffle(actions)
        self.now += 0.001
        return any(act() for act in actions)

    def go_on(self, steps: int) -> None:
        """Time passes too, so that silent workers are given up in the middle of what others do."""
        for _ in range(steps):
            self.step()
            if self.rng.random() < 0.05:
                self.now += 0.3
                self.tick()

    def settle(self, limit: int = 20_000) -> None:
        """Let everything happen. Raises `Violation` if the cluster does not come to rest."""
        quiet = 0
        for _ in range(limit):
            quiet = 0 if self.step() else quiet + 1
            if quiet:
                self.now += 0.1
                self.tick()
            if quiet > 8:  # longer than a worker may keep silent
                return
        raise Violation("the cluster does not come to rest")
