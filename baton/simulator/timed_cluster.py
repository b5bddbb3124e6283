"""A virtual cluster by the clock: messages, steps and writes take time, drawn from the seed or from a cost model.

Each link delivers one message after another, each after a delay of its own, so their order is kept. What happens to
several links at one moment happens in the order of the workers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from baton.protocol.worker import RoleName
from baton.router.policy.latency_model import DEFAULT_COSTS
from baton.simulator.cluster import VirtualCluster
from baton.simulator.network import Network
from baton.simulator.page_network import PageWrite
from baton.simulator.timing import StepTimer
from baton.simulator.virtual_worker import VirtualWorker

TICK_S = 0.1  # between two looks of the router, and of idle workers, at what is due
LEAVE_S = 5e-3  # between two looks of a leaving worker at its writes
RESTART_S = 1.0  # from the end of a worker's process to the registration of the next one
LATE_S = 0.05  # mean time until the bytes of a write that was called off arrive


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take. Messages take `message_s` on average, one in twenty ten times as long."""

    steps: StepTimer = DEFAULT_COSTS
    jitter: float = 0.2  # standard deviation of the logarithm of a step's time
    message_s: float = 0.5e-3
    write_s: float = 1e-3  # mean delay of a write, beside its time on the links
    bandwidth_bytes_s: float = 1e6  # of a worker's link, in one direction

    def message(self, rng: random.Random) -> float:
        mean_s = self.message_s if rng.random() < 0.95 else 10 * self.message_s
        return rng.expovariate(1.0 / mean_s)


@dataclass(eq=False)
class TimedCluster(VirtualCluster):
    """`run_until` plays what happens until a moment. Ended processes come back."""

    timing: Timing = field(default_factory=Timing)
    homes: dict[str, RoleName] = field(init=False, default_factory=dict)  # the role that each worker starts with
    links: Network = field(init=False)  # between workers, where transfers wait for each other
    up_s: float = field(init=False, default=0.0)  # when the router is reachable again

    def __post_init__(self) -> None:
        super().__post_init__()
        self.links = Network(self.events, self.timing.bandwidth_bytes_s, 0.0)
        self.split = True  # a step takes time, in which writes end
        self.events.after(TICK_S, self._tick)

    def start(self, name: str, role: RoleName) -> None:
        """Add a worker that comes back whenever its process ends."""
        self.homes[name] = role
        self.add(name, role)

    def run_until(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Play everything that happens until then, or until `done`."""
        while not done():
            due_s, act = self._next_delivery()
            if min(due_s, self.events.next_s) > until_s:
                self.now = max(self.now, until_s)
                return
            if self.events.next_s <= due_s:
                self.events.step()
            else:
                self.now = max(self.now, due_s)
                act()

    def end_process(self, name: str, back_after_s: float = RESTART_S) -> None:
        """Kill a worker; another process comes up in its place."""
        incarnation = self.workers[name].incarnation + 1
        self.kill(name)
        self.events.after(back_after_s, partial(self._come_up, name, incarnation))

    def on_process_ended(self, name: str) -> None:
        """A router that is down learns it later, or from the next process."""
        if self.now >= self.up_s:
            super().on_process_ended(name)
        else:
            self.events.at(self.up_s, partial(self._on_ended_before, name))

    def _on_ended_before(self, name: str) -> None:
        if name not in self.workers:
            self.on_process_ended(name)

    def _come_up(self, name: str, incarnation: int) -> None:
        self.add(name, self.homes[name], incarnation)

    def restart_router(self, down_s: float = 0.0) -> None:
        """The router loses all its state, and is back later; of what was on its way, some arrives."""
        super().restart_router(down_s)
        self.up_s = self.now
        self.pause_router(down_s)

    def pause_router(self, for_s: float) -> None:
        """The router stops in the middle of whatever it does, and continues later."""
        self.up_s = max(self.up_s, self.now + for_s)
        self._look_at_all()
        self.events.at(self.up_s, self._look_at_all)

    def _look_at_all(self) -> None:
        for worker in self.workers.values():
            worker.changed = True

    def stop(self, worker: VirtualWorker, stopped: bool) -> None:
        """Stop a worker in the middle of whatever it does, or let it continue."""
        worker.silent, worker.changed = stopped, True

    def exits(self, worker: VirtualWorker, reason: str) -> None:
        """The worker ends its process: it could not leave its incarnation."""
        self.events.after(0.0, partial(self._end_if_same, worker))

    def _end_if_same(self, worker: VirtualWorker) -> None:
        if self.workers.get(worker.name) is worker:
            self.end_process(worker.name)

    def _next_delivery(self) -> tuple[float, Callable[[], object]]:
        """The earliest thing on any link or write, and its time."""
        earliest_s, chosen = math.inf, _nothing
        first: VirtualWorker | None = None
        for worker in self.workers.values():
            if worker.changed:
                self._look(worker)
            if worker.next_s < earliest_s:
                earliest_s, first = worker.next_s, worker
        if first is not None:
            chosen = partial(self._act, first)
        self.network.expire(self.now)
        for write in self.network.writes:
            if (ending := self.next_of(write)) is None:
                continue
            if write.due_s is None:
                write.due_s = self.now + self._write_delay(write)
            if write.due_s < earliest_s:
                earliest_s, chosen = write.due_s, partial(self._act_on, write, ending)
        return earliest_s, chosen

    def _look(self, worker: VirtualWorker) -> None:
        """Give each thing that can happen at the worker a time, and note the earliest."""
        due: dict[str, float] = {}
        possible = self.possible(worker)
        for link in possible:
            if (link == "step" and worker.idle) or (link == "outbox" and self.now < self.up_s):
                continue
            at_s = worker.due_s.get(link)
            due[link] = self.now + self._delay(worker, link) if at_s is None else at_s
        worker.due_s, worker.changed = due, False
        worker.next_link = min(due, key=due.__getitem__, default="")
        worker.next_s = due.get(worker.next_link, math.inf)
        worker.next_act = possible.get(worker.next_link)

    def _act(self, worker: VirtualWorker) -> None:
        worker.changed = True
        del worker.due_s[worker.next_link]
        if worker.next_act is not None:
            worker.next_act(worker)

    def _act_on(self, write: PageWrite, act: Callable[[PageWrite], bool]) -> None:
        write.due_s = None
        act(write)

    def _delay(self, worker: VirtualWorker, link: str) -> float:
        if link == "session":
            return LEAVE_S
        if link != "step":
            return self.timing.message(self.rng)
        return 0.0 if worker.stepping is None else self._step_s(worker)

    def _step_s(self, worker: VirtualWorker) -> float:
        """How long the step takes that it has begun; its session learns it."""
        assert worker.stepping is not None
        plan, _ = worker.stepping
        sample = plan.sample(0.0)
        seconds = self.timing.steps.seconds(
            sample.prefill_tokens, sample.prefill_pairs, sample.decodes, sample.context_tokens
        ) * self.rng.lognormvariate(0.0, self.timing.jitter)
        worker.session.on_step(plan.sample(seconds))
        return seconds

    def _write_delay(self, write: PageWrite) -> float:
        if write.called_off:
            return self.rng.expovariate(1.0 / LATE_S)
        num_bytes = len(write.command.source_pages) * write.source.session.info.page_bytes
        arrival_s = self.links.reserve(write.source.name, write.target, num_bytes)
        return arrival_s - self.now + self.rng.expovariate(1.0 / self.timing.write_s)

    def absorb_step(self, worker: VirtualWorker) -> bool:
        """The worker absorbs its step, and does what is due."""
        absorbed = super().absorb_step(worker)
        if worker.stepping is None and not worker.leaving:
            self.tick_worker(worker)
        return absorbed

    def reregister(self, worker: VirtualWorker) -> bool:
        """The worker leaves its incarnation once its own writes have ended, or its process ends."""
        left = super().reregister(worker)
        if not left:
            self.tick_worker(worker)
        return left

    def _tick(self) -> None:
        """The router and idle workers do what is due."""
        self.events.after(TICK_S, self._tick)
        if self.now >= self.up_s:
            self.perform(self.core.tick(self.now))
        while self.to_kill:
            name = self.to_kill.pop()
            if name in self.workers:
                self.end_process(name)
        for worker in list(self.workers.values()):
            if not worker.silent and not worker.leaving:
                self.tick_worker(worker)


def _nothing() -> None:
    pass
