"""KV pages between two processes on one device: the rate against a copy, and the share hidden by chunked prefill."""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch

from baton.config.schema import EngineSection
from baton.engine.batch import StepBudget
from baton.engine.kv_pages import PagePool
from baton.engine.model_config import ModelConfig, model_config
from baton.harness.hand_driven import HandDriven
from baton.kv_transfer.nixl import NixlTransport
from baton.prefill_worker.role import PrefillRole
from baton.protocol.handoff import HandoffOutcome, HandoffReport, Reservation
from baton.protocol.link_rate import SLOW_BYTES_S
from baton.protocol.messages import HandoffEnded, Prefill, SendPages, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import PageLayout
from baton.worker.core.state import WorkerState
from benchmarks.gpu.device import Device, build_executor, build_model, prepare
from benchmarks.gpu.figures import CONTIGUOUS, HIDDEN, PAGE_BY_PAGE, RATE
from benchmarks.gpu.part import Part
from benchmarks.gpu.peer import Peer, handshake, page_receiver, page_sums
from benchmarks.gpu.sequences import pages_for
from benchmarks.gpu.sizes import MIB, Sizes
from benchmarks.handoff import Sender

ROUNDS = 5
PROBE_BYTES = 64 * MIB
SGL = "NIXL_UCX_SGL_ENABLE"
HANDOFF_TIMEOUT_S = 20.0
TRANSPORT_WORDS = re.compile(
    r"\b(cuda_ipc|cuda_copy|gdr_copy|rc_mlx5|rc_verbs|dc_mlx5|ud_mlx5|cma|posix|sysv|xpmem|knem|tcp)/"
)


def run(part: Part) -> None:
    """Measure the rate of a handoff, the share that prefill hides, and the rate page by page."""
    os.environ.setdefault("UCX_PROTO_INFO", "y")  # UCX then logs its choice of transports.
    sizes, device = part.sizes, prepare(part.options.device)
    part.result.facts = device.facts()
    layout = layout_of(sizes)
    part.say("starting the other process")
    with Peer(page_receiver, (device.name, layout)) as peer:
        config, parameters = build_model(sizes.model, sizes.dtype, device, part.options.seed)
        executor = build_executor(device, config, parameters, layout, 1, sizes.handoff_chunk, kernels=part.kernels)
        transport = NixlTransport(executor.pages, layout, "sender:1")
        handshake(transport, peer, peer.answer(), device)
        rate = 0.0

        def bare() -> dict[str, float]:
            nonlocal rate
            figures = bare_rate(part, device, transport, executor.pages, layout, peer)
            rate = 1e9 * figures["handoff_gb_per_s"]
            return figures

        if not part.step("pages against a copy inside the device", [*RATE, CONTIGUOUS, *HIDDEN, PAGE_BY_PAGE], bare):
            return

        def hidden() -> dict[str, float]:
            worker = prefill_worker(sizes, config, executor, transport)
            return hidden_share(part, worker, layout, peer, rate)

        part.step("pages sent while the next chunk computes", HIDDEN, hidden)
        part.step(
            "pages that UCX copies one by one",
            [PAGE_BY_PAGE],
            lambda: page_by_page(part, device, executor.pages),
        )
    part.note(f"UCX_TLS is {os.environ.get('UCX_TLS', 'not set')}; {transports(part.options.log)}")


def layout_of(sizes: Sizes) -> PageLayout:
    """Storage for three prompts, so that the pages of one are scattered."""
    num_pages = 3 * pages_for(sizes.handoff_prompt + 1, sizes.page_size)
    return model_config(sizes.model).page_layout(num_pages, sizes.page_size, sizes.dtype, "random")


def bare_rate(
    part: Part, device: Device, transport: NixlTransport, pages: torch.Tensor, layout: PageLayout, peer: Peer
) -> dict[str, float]:
    """Rates of one prompt's pages: pushed chunk by chunk, in one write, and copied as one piece inside the device."""
    sizes, rng = part.sizes, random.Random(part.options.seed)
    count = sizes.handoff_prompt // sizes.page_size
    num_bytes = count * layout.page_bytes
    source, target = (rng.sample(range(layout.num_pages), count) for _ in range(2))
    sender = Sender(transport, "receiver:1", pages, sizes.handoff_chunk // sizes.page_size)
    other = torch.empty_like(pages[:count])
    device.synchronize()
    rounds = rounds_worth(part, device, sender, layout)
    runs = []
    for _ in range(rounds + 2):
        copy_s = device.seconds(lambda: other.copy_(pages[:count]), 3)
        runs.append((sender.path(source, target), sender.raw(source, target), copy_s))
    path_s, raw_s, copy_s = (median(column) for column in zip(*runs[2:], strict=True))
    check_arrived(peer, pages, source, target)
    in_order = list(range(count))
    contiguous_s = median(sender.path(in_order, in_order) for _ in range(rounds))
    return {
        "handoff_ratio_to_copy": median(copy / path for path, _, copy in runs[2:]),
        "handoff_gb_per_s": num_bytes / path_s / 1e9,
        "handoff_one_write_gb_per_s": num_bytes / raw_s / 1e9,
        "handoff_copy_gb_per_s": num_bytes / copy_s / 1e9,
        CONTIGUOUS: num_bytes / contiguous_s / 1e9,
    }


def rounds_worth(part: Part, device: Device, sender: Sender, layout: PageLayout) -> int:
    """The number of rounds: one if a small write shows that a whole prompt would take seconds."""
    count = min(layout.num_pages, max(1, PROBE_BYTES // layout.page_bytes))
    pages = list(range(count))
    seconds = min(sender.path(pages, pages) for _ in range(2))
    rate = count * layout.page_bytes / seconds / 1e9
    if not device.on_gpu or 1e9 * rate >= SLOW_BYTES_S:
        return ROUNDS
    part.note(f"{rate:.2f} GB/s in a first write is not CUDA IPC, so whole prompts are sent once, not {ROUNDS} times.")
    return 1


def check_arrived(peer: Peer, pages: torch.Tensor, source: list[int], target: list[int]) -> None:
    """Raise `ValueError` when the target's pages differ from the source's."""
    _, sums = peer.ask(target)
    if sums != page_sums(pages, source):
        raise ValueError("The pages at the target are not those of the source.")


def page_by_page(part: Part, device: Device, pages: torch.Tensor) -> dict[str, float]:
    """The rate of pushed chunks when each page is a separate UCX operation, as is NIXL's default, not one list."""
    sizes, rng, layout = part.sizes, random.Random(part.options.seed), layout_of(part.sizes)
    count = sizes.handoff_prompt // sizes.page_size
    source, target = (rng.sample(range(layout.num_pages), count) for _ in range(2))
    before = os.environ.get(SGL)
    os.environ[SGL] = "0"
    try:
        with Peer(page_receiver, (device.name, layout)) as peer:
            transport = NixlTransport(pages, layout, "sender:2")
            handshake(transport, peer, peer.answer(), device)
            sender = Sender(transport, "receiver:1", pages, sizes.handoff_chunk // sizes.page_size)
            rounds = rounds_worth(part, device, sender, layout)
            path_s = median([sender.path(source, target) for _ in range(rounds + 2)][2:])
            check_arrived(peer, pages, source, target)
            transport.close()
    finally:
        os.environ.pop(SGL) if before is None else os.environ.update({SGL: before})
    return {PAGE_BY_PAGE: count * layout.page_bytes / path_s / 1e9}


def prefill_worker(sizes: Sizes, config: ModelConfig, executor: object, transport: NixlTransport) -> HandDriven:
    """A prefill worker's role over the executor."""
    pool = PagePool(transport.endpoint.layout.num_pages, sizes.page_size)
    budget = StepBudget(sizes.handoff_chunk, 1)
    state = WorkerState(
        "sender:1", "random", frozenset(), config.context_tokens, budget, pool, engine=EngineSection(checksum_every=0)
    )
    return HandDriven(PrefillRole(state), executor, transport)


def hidden_share(part: Part, worker: HandDriven, layout: PageLayout, peer: Peer, rate: float) -> dict[str, float]:
    """The hidden share of the handoff of prompts whose pages are pushed as their chunks end.

    The total is the time of the same bytes at `rate` bytes per second, without computation. Exposed is the remaining
    time after the last chunk has been computed.
    """
    sizes, rng = part.sizes, random.Random(part.options.seed + 1)
    vocab_size = worker.executor.config.vocab_size
    exposed, totals, prefills = [], [], []
    for index in range(ROUNDS + 1):
        prompt = tuple(rng.randrange(vocab_size) for _ in range(sizes.handoff_prompt))
        request = Request(f"h{index}", prompt, SamplingParams(max_tokens=8, ignore_eos=True))
        target = rng.sample(range(layout.num_pages), pages_for(len(prompt), sizes.page_size))
        reservation = Reservation(
            f"h{index}/1", request.request_id, "receiver:1", tuple(target), (0,) * len(target), 0, len(prompt)
        )
        started = time.monotonic()
        worker.perform(worker.role.on_message(Prefill(request.request_id, Work(request), "", True, 0), started))
        worker.perform(worker.role.on_message(SendPages(request.request_id, reservation), started))
        table: list[int] = []
        ended: list[HandoffEnded] = []
        while not ended:
            worker.turn()
            table = _page_table(worker, request.request_id) or table
            ended = worker.received(HandoffEnded)
            if time.monotonic() - started > HANDOFF_TIMEOUT_S:
                raise TimeoutError(f"A handoff has not ended within {HANDOFF_TIMEOUT_S:g} s.")
        seconds = time.monotonic() - started
        report = _delivered(ended[0])
        check_arrived(peer, worker.executor.pages, table, target)  # Finds pages sent before they were computed.
        exposed.append(report.exposed_s)
        totals.append(report.bytes_sent / rate)
        prefills.append(seconds - report.exposed_s)
    exposed, totals, prefills = exposed[1:], totals[1:], prefills[1:]
    shares = [max(0.0, 1 - left / total) for left, total in zip(exposed, totals, strict=True)]
    return {
        "handoff_hidden_share": median(shares),
        "handoff_exposed_ms": 1000 * median(exposed),
        "handoff_total_ms": 1000 * median(totals),
        "handoff_prefill_ms": 1000 * median(prefills),
    }


def _page_table(worker: HandDriven, request_id: str) -> list[int]:
    """The pages of the prompt; empty when the worker no longer has it."""
    job = worker.role._jobs.get(request_id)  # type: ignore[attr-defined]
    return list(job.sequence.page_table) if job is not None else []


def _delivered(ended: HandoffEnded) -> HandoffReport:
    if ended.outcome is not HandoffOutcome.DELIVERED:
        raise RuntimeError(f"The handoff ended {ended.outcome.value}: {ended.reason}.")
    return ended.report


def transports(log: Path) -> str:
    """The transports that UCX writes remote memory with, from the log, as a clause."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "its log cannot be read"
    found: Counter[str] = Counter()
    writing = False
    for line in lines:
        if "remote memory write" in line or "active message" in line:
            writing = "remote memory write" in line
        elif writing:
            found.update(TRANSPORT_WORDS.findall(line))
    if not found:
        return "UCX did not say which transport wrote the pages"
    return "UCX writes remote memory over " + ", ".join(name for name, _ in found.most_common())
