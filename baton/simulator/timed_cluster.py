"""A virtual cluster by the clock: messages, steps and writes take time, drawn from the seed or from a cost model.

Each wire delivers what is on it after a delay, so order is kept. What happens at one moment happens in the order in
which it was caused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from baton.gateway.core.commands import SendToRouter
from baton.protocol.worker import RoleName, StepSample
from baton.simulator.cluster import VirtualCluster
from baton.simulator.links import Wire
from baton.simulator.network import Network
from baton.simulator.page_network import PageWrite
from baton.simulator.timing import Timing
from baton.simulator.virtual_gateway import VirtualGateway
from baton.simulator.virtual_worker import VirtualWorker

TICK_S = 0.1  # between two looks of the router, and of idle workers, at what is due
LOAD_S = 1.0  # between two heartbeats of a gateway
OPEN_S = 12e-3  # that a worker's next transport takes to open
LEAVE_S = 5e-3  # between two looks of a leaving worker at its writes
RESTART_S = 1.0  # from the end of a worker's process to the registration of the next one
SLOWER = 100.0  # how many times as long messages to a slow gateway, and writes over a slow link, take
EXIT_S = 0.05  # within which the other ranks of a worker end when one has ended
LATE_S = 0.05  # mean time until the bytes of a write that was called off arrive


@dataclass(eq=False)
class TimedCluster(VirtualCluster):
    """`run_until` plays what happens until a moment. Ended processes come back."""

    timing: Timing = field(default_factory=Timing)
    homes: dict[str, RoleName] = field(init=False, default_factory=dict)  # the role that each worker starts with
    transfers: Network = field(init=False)  # between workers, where writes wait for each other
    up_s: float = field(init=False, default=0.0)  # when the router is reachable again

    def __post_init__(self) -> None:
        self.transfers = Network(self.events, self.timing.bandwidth_bytes_s, 0.0)
        self.split = True  # a step takes time, in which writes end
        super().__post_init__()
        self.events.after(TICK_S, self._tick)

    def start(self, name: str, role: RoleName) -> None:
        """Add a worker that comes back whenever its process ends."""
        self.homes[name] = role
        self.add(name, role)

    def run_until(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Play everything that happens until then, or until `done`."""
        events = self.events
        while not done():
            if events.next_s > until_s:
                self.now = max(self.now, until_s)
                return
            events.step()

    # Processes

    def end_process(self, name: str, back_after_s: float = RESTART_S) -> None:
        """Kill a worker; another process comes up in its place."""
        incarnation = self.workers[name].incarnation + 1
        self.kill(name)
        self.events.after(back_after_s, partial(self._come_up, name, incarnation))

    def end_rank(self, worker: VirtualWorker, rank: int, back_after_s: float = RESTART_S) -> None:
        """Kill a rank of a worker; the others end soon, and another worker comes up in its place."""
        worker.dead_ranks.add(rank)
        self.events.after(self.rng.uniform(0.0, EXIT_S), partial(self._end_if_same, worker, back_after_s))

    def stop_rank(self, worker: VirtualWorker, rank: int, stopped: bool) -> None:
        """Stop a rank in the middle of whatever it does, or let it continue. The first one has the session."""
        if rank == 0:
            self.stop(worker, stopped)
        elif stopped:
            worker.stopped_ranks.add(rank)
        else:
            worker.stopped_ranks.discard(rank)
            self._go_on_writing()

    def end_gateway(self, name: str, back_after_s: float = RESTART_S) -> list[str]:
        """Kill a gateway; another process comes up in its place. Returns the requests whose streams it had."""
        incarnation = int(self.gateways[name].incarnation) + 1
        lost = self.kill_gateway(name)
        self.events.after(back_after_s, partial(self._gateway_up, name, incarnation))
        return lost

    def _gateway_up(self, name: str, incarnation: int) -> None:
        self.add_gateway(name, incarnation)

    def on_process_ended(self, name: str) -> None:
        """A router that is down learns it later, or from the next process."""
        if not self.router.blocked:
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
        self.router.blocked, self.up_s = True, self.now
        super().restart_router(down_s)
        self.pause_router(down_s)

    def pause_router(self, for_s: float) -> None:
        """The router stops in the middle of whatever it does, and continues later."""
        self.router.blocked = True
        self.up_s = max(self.up_s, self.now + for_s)
        self.events.at(self.up_s, self._continue_router)

    def _continue_router(self) -> None:
        if self.router.blocked and self.now >= self.up_s:
            self.router.blocked = False
            self.on_router_up()
            self._wake(link.out for link in self._router_links().values())

    def stop(self, process: VirtualWorker | VirtualGateway, stopped: bool) -> None:
        """Stop a process in the middle of whatever it does, or let it continue."""
        process.silent = stopped
        if stopped:
            return
        if isinstance(process, VirtualGateway):
            links = (worker.gateways.get(process.name) for worker in self.workers.values())
            self._wake([process.link.back, *(one.link.out for one in links if one is not None)])
        else:
            self._wake(process.wires)
            self.on_acted(process)
            self._go_on_writing()

    def exits(self, worker: VirtualWorker, reason: str) -> None:
        """The worker ends its process: it could not leave its incarnation."""
        self.events.after(0.0, partial(self._end_if_same, worker))

    def _end_if_same(self, worker: VirtualWorker, back_after_s: float = RESTART_S) -> None:
        if not worker.gone:
            self.end_process(worker.name, back_after_s)

    # Wires

    def on_sent(self, wire: Wire) -> None:
        """Deliver what is on the wire after a while."""
        if not wire.due and wire.queue:
            wire.due = True
            slower = wire.receiver.slow if isinstance(wire.receiver, VirtualGateway) else 1.0
            self.events.after(slower * self.timing.message(self.rng), partial(self._arrive, wire))

    def _arrive(self, wire: Wire) -> None:
        wire.due = False
        if self.deliver(wire, wire.ready):
            self.on_sent(wire)

    def _wake(self, wires: Iterable[Wire]) -> None:
        """Their receivers take messages again."""
        for wire in wires:
            if wire.queue:
                self.on_sent(wire)

    # Workers

    def on_acted(self, worker: VirtualWorker) -> None:
        """Something has happened at a worker: it may have a step to run, or something to finish."""
        if not worker.turn_due and not worker.blocked:
            worker.turn_due = True
            self.events.after(0.0, partial(self._turn, worker))
        if worker.leaving and not worker.leave_due:
            worker.leave_due = True
            self.events.after(LEAVE_S, partial(self._leave, worker))
        if worker.notices:
            self.on_notice(worker)

    def _turn(self, worker: VirtualWorker) -> None:
        """The worker begins its next step, or does what is due while it has none."""
        worker.turn_due = True
        while not worker.blocked and self.run_step(worker):
            if worker.stepping is not None:
                self.events.after(self._step_s(worker), partial(self._end_step, worker, worker.stepping))
        if not worker.blocked and not worker.leaving:
            self.tick_worker(worker)
        worker.turn_due = False

    def _leave(self, worker: VirtualWorker) -> None:
        worker.leave_due = False
        if worker.leaving and not worker.gone and not worker.silent and not self.reregister(worker):
            self.tick_worker(worker)

    def on_opening(self, worker: VirtualWorker) -> None:
        """A worker opens its next transport; it goes on with its steps."""
        self.events.after(OPEN_S, partial(self._opened, worker))

    def _opened(self, worker: VirtualWorker) -> None:
        if not worker.gone and (worker.silent or not self.open_transport(worker)):
            self.events.after(LEAVE_S, partial(self._opened, worker))

    def _end_step(self, worker: VirtualWorker, step: object) -> None:
        """The worker absorbs its step; if it was stopped, it does so when it continues."""
        if worker.gone or worker.stepping is not step:
            return
        if worker.stuck:
            self.events.after(TICK_S, partial(self._end_step, worker, step))
            return
        self.absorb_step(worker)
        self.tick_worker(worker, idle=False)
        for wire in list(worker.wires):
            if not wire.to_server and not wire.due:  # it came during the step
                self.deliver(wire, wire.ready)

    def _step_s(self, worker: VirtualWorker) -> float:
        """How long the step takes that it has begun; its session learns it."""
        assert worker.stepping is not None
        plan, _ = worker.stepping
        sample = plan.sample(0.0)
        work = sample.prefill_tokens, sample.prefill_pairs, sample.decodes, sample.context_tokens
        seconds = self.timing.steps.seconds(*work) * self.rng.lognormvariate(0.0, self.timing.jitter)
        worker.session.on_step(StepSample(*work, seconds))
        return seconds

    # Writes

    def on_write(self, write: PageWrite) -> None:
        """Let the next thing happen to a write after a while, unless that is due."""
        if not write.due:
            write.due = True
            self.events.after(self._write_delay(write), partial(self._write_on, write))

    def _write_on(self, write: PageWrite) -> None:
        write.due = False
        if write in self.network.writes and self.write_on(write) and write in self.network.writes:
            self.on_write(write)
        if (target := self.workers.get(write.target)) is not None and target.notices:
            self.on_notice(target)

    def heal(self, one: str, other: str) -> None:
        """The cable between two workers or two ranks is whole again."""
        self.network.cut.discard(frozenset((one, other)))
        self._go_on_writing()

    def _go_on_writing(self) -> None:
        for write in self.network.writes:
            self.on_write(write)

    def _write_delay(self, write: PageWrite) -> float:
        if write.called_off:
            return self.rng.expovariate(1.0 / LATE_S)
        arrival_s = self.transfers.reserve(*write.ends, write.num_bytes)
        mean_s = self.timing.write_s * (SLOWER if frozenset(write.ends) in self.network.slow else 1.0)
        return arrival_s - self.now + self.rng.expovariate(1.0 / mean_s)

    def on_notice(self, worker: VirtualWorker) -> None:
        """A peer's notice has arrived at a worker."""
        if not worker.notice_due:
            worker.notice_due = True
            self.events.after(self.timing.message(self.rng), partial(self._read_notice, worker))

    def _read_notice(self, worker: VirtualWorker) -> None:
        worker.notice_due = False
        if worker.notices and not worker.silent and not worker.gone:
            self.notify(worker)

    def _tick(self) -> None:
        """The router, gateways and idle workers do what is due."""
        self.events.after(TICK_S, self._tick)
        self.network.expire(self.now)
        if not self.router.blocked:
            self.perform(self.core.tick(self.now))
        while self.to_kill:
            name = self.to_kill.pop()
            if name in self.workers:
                self.end_process(name)
        for gateway in list(self.gateways.values()):
            if not gateway.blocked:
                self.perform_at(gateway, gateway.session.tick(self.now))
                if self.now >= gateway.loaded_s + LOAD_S:
                    gateway.loaded_s = self.now
                    self.perform_at(gateway, [SendToRouter(gateway.load)])
        for worker in list(self.workers.values()):
            session = worker.session
            if not worker.blocked and (session.writes_in_flight or session.wait_s(self.now) <= 0.0):
                self._turn(worker)
