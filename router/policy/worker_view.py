"""One worker: a row of the table, with the requests, reservations and sequences that its figures are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from baton.protocol.worker import RoleName, WorkerInfo, WorkerLoad
from baton.router.policy.latency_model import LatencyModel, StepCosts
from baton.router.policy.output_length import LengthDistribution
from baton.router.policy.worker_table import CHUNKS_AHEAD, WorkerTable


@dataclass(slots=True, eq=False)
class PromptWork:
    """A prompt (or the rest of one) that was sent to a worker: tokens to compute and their predicted time."""

    tokens: int
    seconds: float


@dataclass(slots=True, eq=False)
class RunningSequence:
    """A sequence that decodes on a worker, or will: its tokens now and its predicted length.

    The router sees no tokens: while a sequence decodes, `emitted` grows with each report by the decode steps of its
    worker, so it is exact or too high by the steps of one report.
    """

    prompt_tokens: int
    output: LengthDistribution
    tpot_s: float | None = None  # its objective
    emitted: int = 0
    decodes_on: str = ""  # the worker whose decode steps add to it

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.emitted


@dataclass(slots=True, eq=False)
class WorkerView:
    """One worker. Figures that decisions use are columns of the table; every method here brings its columns up to date.

    Sequences grow between reports: `context_tokens` counts their tokens as of the latest change of this worker.
    """

    info: WorkerInfo
    load: WorkerLoad
    last_message_s: float
    table: WorkerTable
    row: int  # of the table
    latency: LatencyModel
    assigned: dict[str, PromptWork] = field(default_factory=dict)  # request id → work, in the order it was sent
    reserved: dict[str, int] = field(default_factory=dict)  # reservation id → pages, until a report includes them
    refused_pages: int | None = None  # the smallest reservation it refused since its report
    granted: set[str] = field(default_factory=set)  # reservations it has confirmed: its next report includes them
    running: dict[str, RunningSequence] = field(default_factory=dict)  # request id → sequence
    first_steps: int = 0  # decode steps in its first report
    _costs: StepCosts | None = None  # that the table has
    _expected: list[tuple[float, int]] | None = None  # of `running`: tokens to come, and now, most first; None: changed
    _most_tokens: int | None = None  # of `running`, if each reaches its limit; None: changed
    serving: bool = True  # False: it gets no new work (drained, or changing its role)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def role(self) -> RoleName:
        return self.load.role

    @property
    def backlog_ends_s(self) -> float:
        """The predicted end of its prompt work."""
        return float(self.table.backlog_ends_s[self.row])

    @property
    def pending_prefill_tokens(self) -> int:
        """Prompt tokens this worker has yet to compute, including those in flight to it."""
        return int(self.table.pending_prefill[self.row])

    @property
    def pages_available(self) -> int:
        """Pages it can still reserve, less what was reserved since its report."""
        return int(self.table.pages_available[self.row])

    @property
    def takes_prompts(self) -> bool:
        """Whether it has so little prompt work left that it is given more."""
        chunk = self.info.chunk_tokens
        if self.running and self.role is not RoleName.PREFILL:
            chunk = self.info.mixed_chunk_tokens or chunk
        return self.pending_prefill_tokens < CHUNKS_AHEAD * chunk

    @property
    def sequences(self) -> int:
        """Sequences that run, wait or are expected here."""
        return int(self.table.sequences[self.row])

    @property
    def steps_since_registered(self) -> int:
        """Decode steps that it has reported since it registered, in the role that it had then."""
        return max(0, self.load.decode_steps - self.first_steps)

    @property
    def context_tokens(self) -> int:
        """Tokens that its decode steps read."""
        return int(self.table.context[self.row])

    def decode_step_s(self, extra_sequences: int = 0, extra_tokens: int = 0) -> float:
        """Predicted decode step with so many sequences more, of so many tokens."""
        return float(self.table.decode_step_s(extra_sequences, extra_tokens, self.row))

    def report(self, load: WorkerLoad, now: float) -> None:
        """Its load report: reservations that it includes no longer count here."""
        if not self.load.sequence_number:
            self.first_steps = load.decode_steps
        elif load.role_epoch == self.load.role_epoch:
            self._progress(load.decode_steps - self.load.decode_steps)
        self.load, self.last_message_s, self.refused_pages = load, now, None
        if self.granted:
            for reservation_id in self.granted:
                self.reserved.pop(reservation_id, None)
            self.granted.clear()
        for sample in load.steps:
            self.latency.observe(sample)
        if self.latency.costs is not self._costs:
            self._costs = self.latency.costs
            self.table.set_costs(self.row, self._costs)
        self.table.backlog_ends_s[self.row] = now + self.remaining_work_s()
        self._count_prompts()
        self._count_pages()
        self._count_context()

    def _progress(self, steps: int) -> None:
        """Each sequence that decodes here has gained about one token in each step."""
        name = self.info.name
        for one in self.running.values() if steps > 0 else ():
            if one.decodes_on == name:
                one.emitted = min(one.emitted + steps, max(one.output.limit, one.emitted))

    def assign(self, request_id: str, new_tokens: int, cached_tokens: int, now: float) -> None:
        """A prompt was sent to it, of which so many tokens are cached there."""
        costs, chunk = self.latency.costs, self.info.chunk_tokens
        beside_s = 0.0
        if self.role is not RoleName.PREFILL and self.running:
            chunk = self.info.mixed_chunk_tokens or chunk
            beside_s = self.decode_step_s() - costs.step_s
        seconds = costs.prefill_s(new_tokens, cached_tokens, chunk) + -(-new_tokens // chunk) * beside_s
        self.assigned[request_id] = PromptWork(new_tokens, seconds)
        self.table.backlog_ends_s[self.row] = max(self.backlog_ends_s, now) + seconds
        self._count_prompts()
        self._count_all()

    def unassign(self, request_id: str, now: float) -> None:
        """The prompt is computed, or cancelled."""
        if self.assigned.pop(request_id, None) is None:
            return
        if not self.assigned:
            self.table.backlog_ends_s[self.row] = min(self.backlog_ends_s, now)
        self._count_prompts()
        self._count_all()

    def reserve(self, reservation_id: str, num_tokens: int) -> None:
        self.reserved[reservation_id] = -(-num_tokens // self.info.page_size)
        self._count_pages()

    def grant(self, reservation_id: str) -> None:
        """It holds the pages now; its link is first in, first out, so its next report includes them."""
        if reservation_id in self.reserved:
            self.granted.add(reservation_id)

    def refuse(self, reservation_id: str) -> None:
        """It cannot reserve so many pages, whatever its last report said; the next report replaces this."""
        pages = self.reserved.get(reservation_id)
        if pages is not None:
            self.refused_pages = pages if self.refused_pages is None else min(pages, self.refused_pages)
            self._count_pages()

    def unreserve(self, reservation_id: str) -> bool:
        """The pages are released, or about to be; False if they were not reserved since its report."""
        if self.reserved.pop(reservation_id, None) is None:
            return False
        self._count_pages()
        return True

    def expect(self, request_id: str, sequence: RunningSequence) -> None:
        """The sequence will decode here."""
        self.running[request_id] = sequence
        self._count_sequences()

    def forget(self, request_id: str) -> bool:
        """The sequence no longer decodes here, or never will; False if it was not expected."""
        if self.running.pop(request_id, None) is None:
            return False
        self._count_sequences()
        return True

    def _count_prompts(self) -> None:
        """Both the report (plus what was sent since) and the ledger are upper bounds of the tokens to compute: the
        report lacks what was finished since, the ledger the computed part of a prompt."""
        tokens = sum([work.tokens for work in self.assigned.values()])
        if tokens:
            counted = set(self.load.request_ids)
            unseen = sum([work.tokens for request_id, work in self.assigned.items() if request_id not in counted])
            tokens = min(self.load.pending_prefill_tokens + unseen, tokens)
        self.table.pending_prefill[self.row] = tokens
        self.table.touch(self.row)

    def _count_pages(self) -> None:
        available = self.load.pages_available
        if self.reserved:
            counted = set(self.load.reservation_ids)
            available -= sum([pages for name, pages in self.reserved.items() if name not in counted])
        limit = available if self.refused_pages is None else self.refused_pages - 1
        self.table.pages_available[self.row] = min(available, limit)
        self.table.touch(self.row)

    def _count_sequences(self) -> None:
        table, row, running = self.table, self.row, self.running.values()
        table.decodes[row] = len(running)
        objectives = [one.tpot_s for one in running if one.tpot_s is not None]
        table.tpot_s[row] = min(objectives) if objectives else np.inf
        table.all_state_tpot[row] = len(objectives) == len(running)
        self._count_context()
        self._count_all()

    def _count_context(self) -> None:
        self._most_tokens, self._expected = None, None
        self.table.context[self.row] = sum([one.prompt_tokens + one.emitted for one in self.running.values()])
        self.table.touch(self.row)

    def _count_all(self) -> None:
        self.table.sequences[self.row] = len(self.running) + len(self.assigned.keys() - self.running.keys())

    def peak_pages(self, extra: RunningSequence | None = None) -> int:
        """Pages its sequences will hold at the fullest moment, if each ends when expected.

        Sequences sorted by what remains: when the i-th from the top ends, i of them have grown by that much
        (LightLLM's past-future scheduler, Gong et al. 2025).
        """
        if self._expected is None:
            running = self.running.values()
            self._expected = sorted([(one.output.remaining(one.emitted), one.tokens) for one in running], reverse=True)
        expected = self._expected
        if extra is not None:
            expected = sorted([*expected, (extra.output.remaining(extra.emitted), extra.tokens)], reverse=True)
        peak = tokens = 0.0
        for count, (remaining, held) in enumerate(expected, 1):
            tokens += held
            peak = max(peak, tokens + count * remaining)
        return int(peak / self.info.page_size) + len(expected)

    def fits_at_peak(self, extra: RunningSequence) -> bool:
        """Whether its sequences and `extra` have enough pages at the fullest moment."""
        # If even their limits fit, their expected ends do not matter.
        if self._most_tokens is None:
            self._most_tokens = sum([_limit_tokens(one) for one in self.running.values()])
        pages = (self._most_tokens + _limit_tokens(extra)) // self.info.page_size + len(self.running) + 1
        return pages <= self.info.num_pages or self.peak_pages(extra) <= self.info.num_pages

    def remaining_work_s(self) -> float:
        """Predicted time for the prompt tokens in the last report, and for those sent since."""
        if not self.assigned:
            return 0.0
        counted = set(self.load.request_ids)
        known = [work for request_id, work in self.assigned.items() if request_id in counted]
        computed = sum(work.tokens for work in known) - self.load.pending_prefill_tokens
        seconds = sum(work.seconds for request_id, work in self.assigned.items() if request_id not in counted)
        for work in known:
            done = min(max(computed, 0), work.tokens)
            computed -= done
            seconds += work.seconds * (1 - done / max(work.tokens, 1))
        return seconds


def _limit_tokens(sequence: RunningSequence) -> int:
    """Its tokens if it reaches its limit."""
    return sequence.prompt_tokens + max(sequence.output.limit, sequence.emitted + 1)
