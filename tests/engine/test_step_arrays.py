"""A step's flat arrays describe its sequences, whatever happened to their page tables before."""

from __future__ import annotations

import pickle
import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.decode_worker.handoff_receiver import HandoffReceiver
from baton.decode_worker.swap import SwapSpace
from baton.engine.batch import StepBudget, absorb_step, plan_step
from baton.engine.kv_pages import PagePool
from baton.engine.page_table import commit_pages, give_back_pages, grow, take_pages
from baton.engine.sequence import Sequence, page_ids
from baton.engine.step import SampledToken, StepPlan, StepResult
from baton.engine.step_arrays import step_arrays
from baton.protocol.messages import Reserve, Work
from baton.protocol.request import Request, SamplingParams
from tests.engine.batches import Ragged, ragged_batches

ROOT = b"root"


def check_flat(plan: StepPlan, page_size: int) -> None:
    """Check each array against its definition, position by position."""
    step = pickle.loads(pickle.dumps(step_arrays(plan, page_size), protocol=5))  # as another rank receives it
    token_ids, sampled, layout = step.tensors()
    arrays = (
        token_ids,
        sampled,
        layout.qo_indptr,
        layout.indptr,
        layout.indices,
        layout.last_page_len,
        layout.positions,
    )
    assert all(array.dtype == torch.int32 and array.device.type == "cpu" for array in arrays)
    tokens, positions, qo_indptr, indptr, indices, last_page_len, rows = [], [], [0], [0], [], [], []
    for part in plan.slices:
        for position in range(part.start, part.start + part.num_tokens):
            tokens.append(part.sequence.tokens[position])
            positions.append(position)
        used = {position // page_size for position in range(part.start + part.num_tokens)}
        indices += [part.sequence.page_table[index] for index in sorted(used)]
        last_page_len.append((positions[-1]) % page_size + 1)
        qo_indptr.append(len(tokens))
        indptr.append(len(indices))
        rows += [len(tokens) - 1] if part.samples else []
    expected = (tokens, rows, qo_indptr, indptr, indices, last_page_len, positions)
    assert [array.tolist() for array in arrays] == [list(values) for values in expected]
    assert layout.num_decodes == plan.num_decodes
    assert step.only_decodes == (plan.num_decodes == len(plan.slices))


@settings(deadline=None)
@given(batch=ragged_batches())
def test_the_arrays_of_a_random_plan_are_those_of_the_definition(batch: Ragged) -> None:
    check_flat(batch.plan(), batch.page_size)


class _Worker:
    """Sequences over a small pool; each method is one kind of change to page tables."""

    def __init__(self, rng: random.Random, page_size: int) -> None:
        self.rng, self.page_size = rng, page_size
        self.pool = PagePool(24, page_size)
        self.swap = SwapSpace(12, page_size)
        self.inbound = HandoffReceiver(self.pool, "agent", "model")
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.begun = 0

    def _start(self) -> Sequence:
        self.begun += 1
        prompt = tuple(self.rng.choice([1, 2]) for _ in range(self.rng.randrange(1, 3 * self.page_size + 2)))
        return Sequence.start(Request(f"r{self.begun}", prompt, SamplingParams()))

    def arrive(self) -> None:
        self.waiting.append(self._start())

    def arrive_from_another_worker(self) -> None:
        """A migrated sequence, with pages for tokens that it does not have yet."""
        sequence = self._start()
        sequence.tokens.append(3)
        growth = self.rng.randrange(1, 2 * self.page_size)
        request_id = sequence.request_id
        order = Reserve(request_id, request_id, Work(sequence.request), "", 0, growth)
        if self.inbound.reserve(order, sequence, 0) is not None:
            sequence.computed = len(sequence.tokens) - 1
            self.running.append(sequence)

    def admit(self) -> None:
        if self.waiting and take_pages(self.waiting[0], self.pool, ROOT):
            self.running.append(self.waiting.pop(0))
            self.swap.swap_in(self.running[-1])

    def preempt(self) -> None:
        if self.running:
            sequence = self.running.pop(self.rng.randrange(len(self.running)))
            self.swap.swap_out(sequence)
            give_back_pages(sequence, self.pool)
            self.waiting.append(sequence)

    def end(self) -> None:
        if self.running:
            give_back_pages(self.running.pop(0), self.pool)

    def step(self) -> None:
        ready = [sequence for sequence in self.running if grow(sequence, self.pool)]
        decoding = [sequence for sequence in ready if sequence.decoding]
        prefilling = [sequence for sequence in ready if not sequence.decoding]
        plan = plan_step(decoding, prefilling, StepBudget(self.rng.randrange(1, 30), self.rng.randrange(1, 6)))
        if plan is None:
            return
        check_flat(plan, self.page_size)
        absorb_step(plan, StepResult([SampledToken(self.rng.randrange(3)) for _ in plan.sampling]))
        for part in plan.slices:
            commit_pages(part.sequence, self.pool, lambda sequence: ROOT)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), page_size=st.sampled_from([1, 4, 16]))
def test_the_arrays_stay_those_of_the_definition_when_page_tables_grow_and_are_lost(seed: int, page_size: int) -> None:
    rng = random.Random(seed)
    worker = _Worker(rng, page_size)
    rare = [worker.arrive_from_another_worker, worker.preempt, worker.end]
    for _ in range(60):
        rng.choice([worker.arrive, worker.admit, worker.admit, worker.step, worker.step, *rare])()
    for sequence in (*worker.running, *worker.waiting):
        assert sequence.page_table.itemsize == page_ids(()).itemsize == 4
