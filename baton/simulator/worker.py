"""A worker in virtual time: the real session, role and pages; a timing model in place of the engine.

Decode steps between two events differ only in lengths, so a run of them passes as one event: until a sequence ends, a
page fills twice or a message comes, which cuts the run at the end of the step it falls into.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from baton.decode_worker.role import DecodeRole
from baton.engine.sequence import Sequence
from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.protocol.handoff import HandoffNotice
from baton.protocol.head_slices import heads_of
from baton.protocol.messages import RouterMessage, WorkerMessage
from baton.protocol.worker import RoleName, StepSample
from baton.simulator.events import Events
from baton.simulator.network import Network, rank_pairs
from baton.simulator.timing import StepTimer
from baton.worker.core.role import SwapIn, SwapOut, WriteEnded, WritePages
from baton.worker.session import SessionCommand, WorkerSession

EOS, TOKEN = 0, 1
MAX_RUN_S = 0.25  # the router shall not be without news for longer


@dataclass(slots=True, eq=False)
class _Run:
    """Steps that are under way: the first one's plan, and each one's end."""

    plan: StepPlan
    sample: StepSample  # of the first step
    start_s: float
    ends_s: list[float]
    number: int = 0

    @property
    def last_sample(self) -> StepSample:
        """What the last of its steps computed, and how long it took."""
        before = self.ends_s[-2] if len(self.ends_s) > 1 else self.start_s
        context = self.sample.context_tokens + (len(self.ends_s) - 1) * self.sample.decodes
        return replace(self.sample, context_tokens=context, seconds=self.ends_s[-1] - before)


@dataclass(slots=True)
class Answer:
    """One request's output: when the first token and the last one were computed, and how many there are."""

    first_s: float
    last_s: float
    num_tokens: int
    cached_tokens: int  # of the prompt


@dataclass(eq=False)
class Answers:
    """What live requests have so far, and the inter-token latencies of all, as (seconds, how many tokens) pairs."""

    seconds: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    live: dict[str, Answer] = field(default_factory=dict)

    def on_tokens(self, sequence: Sequence, ends_s: list[float]) -> None:
        """A sequence got a token at each of these times."""
        answer = self.live.get(sequence.request_id)
        if answer is None:
            self.live[sequence.request_id] = answer = Answer(ends_s[0], ends_s[0], 0, sequence.cached)
        else:
            self._add(ends_s[0] - answer.last_s, 1)
        if len(ends_s) > 1:
            self._add((ends_s[-1] - ends_s[0]) / (len(ends_s) - 1), len(ends_s) - 1)
        answer.last_s = ends_s[-1]
        answer.num_tokens += len(ends_s)

    def _add(self, seconds: float, count: int) -> None:
        self.seconds.append(seconds)
        self.counts.append(count)


@dataclass(eq=False)
class RoleTime:
    """Seconds by role: a worker's may change."""

    seconds: dict[RoleName, float] = field(default_factory=dict)

    def add(self, role: RoleName, seconds: float) -> None:
        self.seconds[role] = self.seconds.get(role, 0.0) + seconds


@dataclass(eq=False)
class SimulatedWorker:
    """One worker. `lengths` has the tokens of each request's answer, which only the executor may use."""

    session: WorkerSession
    timer: StepTimer
    events: Events
    network: Network
    lengths: dict[str, int]
    to_router: Callable[[str, list[WorkerMessage]], None]
    peers: dict[str, SimulatedWorker]  # by agent
    rng: random.Random
    jitter: float
    answers: Answers
    host_bandwidth_bytes_s: float  # of copies between one rank's pages and host memory
    busy: RoleTime = field(default_factory=RoleTime)  # in which it computed
    present: RoleTime = field(default_factory=RoleTime)  # in which it had its earlier roles
    since_s: float = 0.0  # when it took on its present one
    tokens_computed: int = 0
    _inbox: deque[Callable[[], None]] = field(default_factory=deque)  # handled between steps
    _run: _Run | None = None
    _runs: int = 0
    _copying_s: float = 0.0  # copies that the next step waits for

    def start(self) -> None:
        """Register."""
        self.session.on_transport(self.session.info.endpoint, self.events.now)
        self._flush()

    def receive(self, batch: list[RouterMessage]) -> None:
        """Messages of the router."""
        self._later(*(partial(self._on_message, message) for message in batch))

    def _later(self, *actions: Callable[[], None]) -> None:
        """Handle something: now if no step runs, else when the present one ends."""
        self._inbox.extend(actions)
        run, now = self._run, self.events.now
        if run is None:
            self._turn()
        elif len(run.ends_s) > 1:
            steps = next((index for index, end_s in enumerate(run.ends_s, 1) if end_s >= now), len(run.ends_s))
            if steps < len(run.ends_s):
                del run.ends_s[steps:]
                self._schedule(run)

    def _schedule(self, run: _Run) -> None:
        self._runs += 1
        run.number = self._runs
        self.events.at(run.ends_s[-1], lambda number=run.number: self._on_run_ended(number))  # type: ignore[misc]

    def _turn(self) -> None:
        """Handle what came, report, and begin the next step or run of steps."""
        now = self.events.now
        while self._inbox:
            self._inbox.popleft()()
        copies, plan = self.session.plan(now)
        self._perform(copies)
        self._perform(self.session.tick(now, idle=plan is None))
        self._flush()
        if plan is not None:
            self._begin(plan)

    def _begin(self, plan: StepPlan) -> None:
        now = self.events.now
        sample = plan.sample(0.0)
        steps = self._quiet_steps(plan) if sample.decodes == len(plan.slices) else 1
        noise = self.rng.lognormvariate(0.0, self.jitter) if self.jitter else 1.0
        tokens, pairs, decodes = sample.prefill_tokens, sample.prefill_pairs, sample.decodes
        seconds = noise * self.timer.seconds(tokens, pairs, decodes, sample.context_tokens)
        ends_s = [now + seconds + self._copying_s]
        self._copying_s = 0.0
        if steps > 1:
            # Decode time is linear in the positions it reads, which grow by one for each sequence and step.
            growth = noise * self.timer.seconds(tokens, pairs, decodes, sample.context_tokens + decodes) - seconds
            while len(ends_s) < steps and ends_s[-1] - now < MAX_RUN_S:
                seconds += growth
                ends_s.append(ends_s[-1] + seconds)
        self._run = _Run(plan, sample, now, ends_s)
        self._schedule(self._run)

    def _quiet_steps(self, plan: StepPlan) -> int:
        """Steps after which every sequence of a decode-only plan still runs, with a page at most for each to take."""
        pool = self.session.state.pool
        if pool.num_available < 2 * len(plan.slices):
            return 1
        left = min(self._length(part.sequence) - part.sequence.num_output for part in plan.slices)
        return max(1, min(left, pool.page_size))

    def _on_run_ended(self, number: int) -> None:
        run = self._run
        if run is None or run.number != number:
            return  # it was cut, and ended before
        self._run = None
        now, steps = self.events.now, len(run.ends_s)
        self.busy.add(self.session.role.name, now - run.start_s)
        self.session.on_step(run.last_sample)
        plan = run.plan
        if steps > 1:
            self._skip(plan, steps - 1)
            copies, again = self.session.plan(now)
            self._perform(copies)
            plan = again or plan
        for part in plan.slices:
            if part.samples and part.sequence.request_id in self.lengths:
                self.answers.on_tokens(part.sequence, run.ends_s)
        self._perform(self.session.absorb(plan, self.execute(plan), now))
        self._turn()

    def _skip(self, plan: StepPlan, steps: int) -> None:
        """The same sequences decode `steps` tokens each, in which nothing else happens."""
        for part in plan.slices:
            part.sequence.tokens += [TOKEN] * steps
            part.sequence.computed += steps
        self.tokens_computed += steps * len(plan.slices)
        if isinstance(self.session.role, DecodeRole):
            self.session.role.decode_steps += steps

    def execute(self, plan: StepPlan) -> StepResult:
        """Tokens that mean nothing, and the end of the sequence where the trace has it."""
        self.tokens_computed += plan.num_tokens
        return StepResult([SampledToken(self._token(part.sequence)) for part in plan.slices if part.samples])

    def _token(self, sequence: Sequence) -> int:
        return EOS if sequence.num_output + 1 >= self._length(sequence) else TOKEN

    def _length(self, sequence: Sequence) -> int:
        """Tokens of its whole answer; a request that the trace does not have (the router's own) goes to its limit."""
        return self.lengths.get(sequence.request_id, sequence.request.sampling.max_tokens)

    def _on_message(self, message: RouterMessage) -> None:
        role, now = self.session.role.name, self.events.now
        self._perform(self.session.on_message(message, now))
        if self.session.role.name is not role:
            self.present.add(role, now - self.since_s)
            self.since_s = now

    def _perform(self, commands: list[SessionCommand]) -> None:
        for command in commands:
            match command:
                case WritePages():
                    self._write(command)
                case SwapOut(pages) | SwapIn(_, pages):
                    self._copying_s += len(pages) * self.rank_page_bytes / self.host_bandwidth_bytes_s

    @property
    def rank_page_bytes(self) -> int:
        """Bytes of a page at each rank, which copy at the same time."""
        info = self.session.info
        layout = info.endpoint.layout
        return len(heads_of(layout.num_kv_heads, info.num_ranks, 0)) * layout.head_bytes

    def _write(self, write: WritePages) -> None:
        """Ranks write side by side. With one pair the notice goes with the pages, else after the last pair's."""
        agent, target = self.session.agent, self.peers[write.agent]
        info, num_pages = self.session.info, len(write.source_pages)
        layout = info.endpoint.layout
        pairs = rank_pairs(layout.num_kv_heads, info.num_ranks, target.session.info.num_ranks)
        parts = [
            (f"{agent}/{rank}", f"{write.agent}/{piece.target_rank}", num_pages * piece.num_heads * layout.head_bytes)
            for rank, piece in pairs
        ]
        num_bytes, seconds = sum(part[2] for part in parts), 0.0

        def arrived() -> None:
            if write.notice is not None:
                notice = partial(target._later, partial(target._on_notice, write.notice))
                notice() if len(pairs) == 1 else self.network.send(notice)
            self._later(partial(self._on_write_ended, WriteEnded(write.write_id, num_bytes, seconds)))

        seconds = self.network.transfer(parts, arrived)

    def _on_notice(self, notice: HandoffNotice) -> None:
        self._perform(self.session.on_notice(notice, 0, self.events.now))

    def _on_write_ended(self, outcome: WriteEnded) -> None:
        self._perform(self.session.on_write_ended(outcome, self.events.now))

    def _flush(self) -> None:
        if self.session.outbox:
            batch, self.session.outbox = self.session.outbox, []
            self.to_router(self.session.info.name, batch)
