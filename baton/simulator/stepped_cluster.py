"""A virtual cluster in which what happens next is picked at random: any order that the links allow.

Nothing takes time but what says so; a test can stop after each step, look, and go on.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial

from baton.protocol.request import Request
from baton.protocol.session_messages import Alive
from baton.protocol.worker import RoleName
from baton.simulator.cluster import VirtualCluster
from baton.simulator.links import Wire
from baton.simulator.token_checker import Violation
from baton.simulator.virtual_gateway import VirtualGateway
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

    def add_gateway(self, name: str, incarnation: int = 1) -> VirtualGateway:
        """Start a gateway, which has registered when this returns."""
        gateway = super().add_gateway(name, incarnation)
        self.exchange(gateway)
        return gateway

    def submit(
        self, request_id: str, prompt: Seq[int], max_tokens: int, tenant: str = "", gateway: str = "gateway-0"
    ) -> Request:
        """A client sends a request, which reaches the router at once. Raises what it is refused with."""
        request = super().submit(request_id, prompt, max_tokens, tenant, gateway)
        self.exchange(self.gateways[gateway])
        end = self.ended.get(request_id)
        if end is not None and end.error is not None:
            del self.ended[request_id]
            raise end.error
        return request

    def exchange(self, gateway: VirtualGateway) -> None:
        """What a gateway and the router have sent each other arrives."""
        wires = gateway.link.back, gateway.link.out
        while any(self.deliver(wire, wire.ready) for wire in wires):
            pass

    def absorb_step(self, worker: VirtualWorker) -> bool:
        """The worker absorbs the step that it has computed, and often reports at once."""
        absorbed = super().absorb_step(worker)
        if absorbed and self.rng.random() < 0.5:
            self.report(worker)
        return absorbed

    def report(self, worker: VirtualWorker) -> None:
        """What the worker has to send, a load report with it, arrives at once."""
        worker.session._reports.be_due()
        self.tick_worker(worker)
        wires = worker.link.out, *(one.link.out for one in worker.gateways.values())
        while any(self.deliver(wire, wire.ready) for wire in wires):
            pass

    def tick(self) -> None:
        """What is due at the router, the gateways and the workers. A report that overtakes nothing arrives at once."""
        self.perform(self.core.tick(self.now))
        for gateway in self.gateways.values():
            if not gateway.blocked:
                self.perform_at(gateway, gateway.session.tick(self.now))
                if not gateway.link.out.queue:
                    self.perform(self.core.on_frame(gateway.name, gateway.incarnation, [gateway.load], self.now))
        for worker in self.workers.values():
            if worker.silent or worker.leaving:
                continue
            if worker.serving:
                self.to_router(worker, [Alive()])
            if worker.link.out.queue or not worker.serving:
                self.tick_worker(worker)
            else:
                self.report(worker)
        while self.to_kill:
            name = self.to_kill.pop()
            if name in self.workers:
                self.kill(name)

    def _possible(self) -> list[Callable[[], bool]]:
        """What can happen next."""
        actions: list[Callable[[], bool]] = []
        wires: list[Wire] = []
        for gateway in self.gateways.values():
            wires += (gateway.link.back, gateway.link.out)
        for worker in self.workers.values():
            wires += worker.wires
            if worker.silent:
                continue
            if worker.notices:
                actions.append(partial(self.notify, worker))
            if worker.leaving:
                actions.append(partial(self.reregister, worker))
            if worker.opening:
                actions.append(partial(self.open_transport, worker))
            actions.append(partial(self.run_step if worker.stepping is None else self.absorb_step, worker))
        actions += [partial(self.deliver, wire) for wire in wires if wire.ready]
        return actions + [partial(self.write_on, write) for write in self.network.writes]

    def step(self) -> bool:
        """One randomly chosen delivery or engine step; False when nothing is left to happen."""
        self.network.expire(self.now)
        actions = self._possible()
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
            if quiet > 25:  # longer than a worker may keep silent, or a gateway waits for a dead worker's tokens
                return
        raise Violation("the cluster does not come to rest")
