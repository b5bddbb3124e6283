"""Tables in narrow terminals: names are never cut, columns are dropped by importance."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from baton.cli.cluster_report import cluster_screen, pools_screen, status_lines
from baton.cli.doctor import _table
from baton.cli.operation_progress import OperationProgress, print_operations, print_plan
from baton.cli.progress import StartProgress
from baton.cli.report import print_answer, print_explanation
from baton.cli.simulate_report import print_plan as print_splits
from baton.cli.table import PIPE_CELLS, columns_that_fit, show
from baton.client.answer import Answer
from baton.protocol.handoff import HandoffReport
from baton.protocol.v1 import admin_pb2
from baton.simulator.search import Probe, SplitResult, Trial
from baton.simulator.setup import Pools, Setup

WIDTHS = (200, 120, 80, 60, 40)
GATEWAYS = ("gateway-0", "gateway-12")
NAMES = ("prefill-0", "prefill-11", "decode-0", "decode-1", "decode-123")

columns = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=14)


@given(columns, st.integers(1, 300))
def test_dropped_columns_are_less_important_than_kept_ones(table: list[tuple[int, int]], room: int) -> None:
    cells, ranks = zip(*table, strict=True)
    kept = columns_that_fit(cells, ranks, room)
    gone = set(range(len(table))) - set(kept)
    assert kept == sorted(kept)
    assert {index for index, rank in enumerate(ranks) if rank == 0} <= set(kept)
    assert all(ranks[dropped] >= ranks[other] for dropped in gone for other in kept)


@given(columns, st.integers(1, 300))
def test_no_more_columns_are_dropped_than_needed(table: list[tuple[int, int]], room: int) -> None:
    cells, ranks = zip(*table, strict=True)
    kept = columns_that_fit(cells, ranks, room)

    def width(shown: list[int]) -> int:
        return sum(cells[index] + 3 for index in shown) + 1

    assert width(kept) <= room or not any(ranks[index] for index in kept)
    gone = [index for index in range(len(table)) if index not in kept]
    if gone:
        nearest = min(gone, key=lambda index: (ranks[index], index))
        assert width([*kept, nearest]) > room


@given(columns, st.integers(1, 300), st.integers(0, 100))
def test_more_width_never_drops_a_column(table: list[tuple[int, int]], room: int, more: int) -> None:
    cells, ranks = zip(*table, strict=True)
    assert set(columns_that_fit(cells, ranks, room)) <= set(columns_that_fit(cells, ranks, room + more))


def _terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, highlight=False)


def _lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def _cluster() -> admin_pb2.Cluster:
    cluster = admin_pb2.Cluster(model="HuggingFaceTB/SmolLM2-135M", settings={"policy": "predicted_latency"})
    for name in GATEWAYS:
        cluster.gateways.add(
            name=name,
            public_address="[2001:db8::17]:50051",
            streams=1234,
            tokens_per_s=12_345.6,
            requests_per_s=123.45,
            cpu_share=0.876,
            waiting_bytes=5 << 20,
        )
    for role in ("prefill", "decode"):
        workers = [
            admin_pb2.WorkerStatus(
                name=name,
                state="draining",
                running=123,
                waiting=45,
                swapped=12,
                pending_prefill_tokens=123_456,
                predicted_busy_s=12.3456,
                predicted_tpot_s=0.0165,
                pages_total=4096,
                pages_in_use=2048,
                pages_cached=1024,
                predicted_peak_pages=4096,
            )
            for name in NAMES
            if name.startswith(role)
        ]
        cluster.pools.add(role=role, workers=workers)
    return cluster


def _status(console: Console) -> tuple[str, ...]:
    show(console, cluster_screen(_cluster()))
    return *GATEWAYS, *NAMES


def _pools(console: Console) -> tuple[str, ...]:
    show(console, pools_screen(_cluster()))
    return "prefill", "decode"


def _leaks(console: Console) -> tuple[str, ...]:
    check = admin_pb2.PageCheck()
    for name in NAMES:
        check.workers.add(name=name, pages_total=81_920, pages_free=70_000, pages_cached=10_000, pages_in_use=1_920)
    show(console, _table(check))
    return NAMES


def _operations(console: Console) -> tuple[str, ...]:
    made = [
        admin_pb2.Operation(
            operation_id=operation_id,
            title="rebalance to 3 prefill + 1 decode",
            state="cancelled",
            message="decode-123 could not be drained: no other worker of its pool has room for 17 sequences.",
            elapsed_s=123.4,
        )
        for operation_id in ("3f9c21ab", "tuesday-evening")
    ]
    print_operations(console, made)
    return "3f9c21ab", "tuesday-evening"


def _plan(console: Console) -> tuple[str, ...]:
    plan = admin_pb2.Operation(title="rebalance to 3 prefill + 1 decode")
    for name in NAMES:
        plan.steps.add(worker=name, action="switch to prefill", detail="moves 12 sequences to others of its pool first")
    print_plan(console, plan)
    return NAMES


def _progress(console: Console) -> tuple[str, ...]:
    operation = admin_pb2.Operation(title="drain", state="running")
    for name in NAMES:
        operation.steps.add(
            worker=name, action="switch to prefill", state="done", detail="moved 12 sequences to others"
        )
    progress = OperationProgress(console)
    progress._operation = operation
    console.print(progress._table())
    return NAMES


def _explanation(console: Console) -> tuple[str, ...]:
    explanation = admin_pb2.Explanation(
        request_id="r1", prefill_worker="prefill-0", decode_worker="decode-0", why="it is idle"
    )
    for name in NAMES:
        explanation.candidates.add(worker=name, local=True, ttft_s=1.5, wait_s=0.5, uncached_tokens=4000, tpot_s=0.02)
    print_explanation(console, explanation)
    return tuple(f"{name} (whole request)" for name in NAMES)


def _splits(console: Console) -> tuple[str, ...]:
    probe = Probe(Trial(Pools(3, 5), 1.0, 1500), 12.34, 11.1, 0.9123)
    setup = Setup("llama-3.1-70b", "h100")
    splits = [SplitResult(Pools(3, 5), probe, (probe,)), SplitResult(Pools(16, 16), None, (probe,))]
    print_splits(console, setup, splits, 0.9)
    return setup.named(Pools(3, 5)), setup.named(Pools(16, 16))


SCREENS = [_status, _pools, _leaks, _operations, _plan, _progress, _explanation, _splits]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("screen", SCREENS)
def test_no_name_is_cut_and_no_line_is_wider_than_the_terminal(
    screen: Callable[[Console], tuple[str, ...]], width: int
) -> None:
    console = _terminal(width)
    names = screen(console)
    lines = _lines(console)
    for name in names:
        assert any(name in line for line in lines), f"{name} is not in {lines}"
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_a_name_wider_than_the_terminal_is_not_cut() -> None:
    console = _terminal(20)
    check = admin_pb2.PageCheck()
    check.workers.add(name="decode-of-the-second-rack-on-the-left")
    show(console, _table(check))
    assert any("decode-of-the-second-rack-on-the-left" in line for line in _lines(console))


def test_a_terminal_of_120_shows_every_column_of_the_status() -> None:
    console = _terminal(120)
    cluster = _cluster()
    for worker in (worker for pool in cluster.pools for worker in pool.workers):
        worker.name, worker.state, worker.swapped, worker.predicted_busy_s = "prefill-0", "serving", 0, 0.5
    show(console, cluster_screen(cluster))
    head = next(line for line in _lines(console) if "worker" in line)
    assert "KV pages" in head
    assert "peak" in head


def test_a_pipe_shows_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console = Console(file=io.StringIO(), highlight=False)
    _status(console)
    assert console.width == PIPE_CELLS
    assert any("KV pages" in line for line in _lines(console))


def test_the_status_shows_each_gateway_with_its_load() -> None:
    console = _terminal(120)
    show(console, cluster_screen(_cluster()))
    row = next(line for line in _lines(console) if "gateway-12" in line)
    for cell in ("[2001:db8::17]:50051", " 1234 ", " 12,346 ", " 123.5 ", " 88 % ", " 5.0 MiB "):
        assert cell in row
    (line,) = (line for line in status_lines(_cluster()) if "gateway-12" in line)
    assert "streams 1234  12346 tokens/s  123.5 requests/s  CPU 88 %  waiting text 5.0 MiB" in line


def test_the_status_shows_the_ranks_of_a_worker_once_a_worker_has_several() -> None:
    console = _terminal(160)
    cluster = _cluster()
    show(console, cluster_screen(cluster))
    assert "ranks" not in "".join(_lines(console))
    first, *others = (worker for pool in cluster.pools for worker in pool.workers)
    first.rank_pids.extend((4711, 4712))
    for worker in others:
        worker.rank_pids.append(17)
    show(console, cluster_screen(cluster))
    assert any(f" {first.name} " in line and " 2 (4711, 4712) " in line for line in _lines(console))
    assert any(f" {others[0].name} " in line and " 1 (17) " in line for line in _lines(console))
    assert [line.partition("  ranks ")[2] for line in status_lines(cluster) if first.name in line] == ["2 (4711, 4712)"]
    assert not any("ranks" in line for line in status_lines(cluster) if others[0].name in line)


def test_the_status_of_a_cluster_without_gateways_says_so() -> None:
    console = _terminal(120)
    cluster = _cluster()
    del cluster.gateways[:]
    show(console, cluster_screen(cluster))
    assert "No gateway is registered." in _lines(console)


def test_cancelled_requests_are_not_among_the_failed_ones() -> None:
    console = _terminal(200)
    cluster = admin_pb2.Cluster(finished_requests=7, cancelled_requests=33, failed_requests=2, refused_requests=1)
    cluster.settings["policy"] = "round_robin"
    show(console, cluster_screen(cluster))
    assert "7 finished, 33 cancelled by their clients, 2 failed (1 of them refused)" in _lines(console)[0]


@pytest.mark.parametrize("terminal", [True, False])
def test_an_ipv6_address_is_shown_in_full_while_a_cluster_starts(terminal: bool) -> None:
    console = _terminal(80) if terminal else Console(file=io.StringIO(), width=80)
    with StartProgress(console) as progress:
        progress("ray", "ready at [fd00::1]:44971")
    assert any("ready at [fd00::1]:44971" in line for line in _lines(console))


def test_an_answers_handoff_counts_one_page_as_a_page() -> None:
    handoff = HandoffReport(pages_sent=1, pages_cached=87, bytes_sent=16384, transfer_s=0.0005)
    answer = Answer("r", "", (), "stop", 1402, 6, 1392, 0.0, 0.05, None, 0.2, "prefill-0", "decode-0", 1, 0, handoff)
    console = Console(file=io.StringIO(), width=120)
    print_answer(console, answer)
    assert "1 page, 16.0 KiB in 0.5 ms; 87 pages already cached" in console.file.getvalue()  # type: ignore[attr-defined]
