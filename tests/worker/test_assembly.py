"""What a worker's process is like once its worker has been built."""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import pytest

from baton.builtin_model import CHECKPOINT
from baton.engine.executor import TorchExecutor
from baton.engine.host_pages import HostPages
from baton.harness.process_cluster import plans
from baton.protocol.errors import ConfigError
from baton.worker.background_transport import BackgroundTransport
from baton.worker.build import assemble


def _assembled(told: Connection) -> None:
    """The numbers of objects that a full collection looks at and leaves out, and what the worker's loop drives."""
    plan = replace(plans(CHECKPOINT, 64, 16)[1], name="prefill-0", role="prefill", router_address="tcp://127.0.0.1:9")
    loop = assemble(plan, "1", "localhost", lambda stage: None)
    driven = [type(part) for part in (loop.executor, loop.transport, loop.host_pages)]
    told.send((len(gc.get_objects()), gc.get_freeze_count(), driven))
    told.close()
    os._exit(0)  # nothing here has to be closed


@pytest.fixture(scope="module")
def assembled() -> Iterator[tuple[int, int, list[type]]]:
    ours, theirs = mp.Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=_assembled, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def test_what_start_up_has_left_is_not_looked_at_by_collections_between_steps(
    assembled: tuple[int, int, list[type]],
) -> None:
    looked_at, left_out, _ = assembled
    assert looked_at < left_out / 10


def test_nothing_stands_between_the_loop_of_one_rank_and_its_engine(assembled: tuple[int, int, list[type]]) -> None:
    assert assembled[2] == [TorchExecutor, BackgroundTransport, HostPages]


def test_several_ranks_need_a_way_to_start_them() -> None:
    plan = plans(CHECKPOINT, 64, 16)[1]
    plan = replace(plan, name="prefill-0", engine=plan.engine.changed(ranks=2))
    with pytest.raises(ConfigError, match="prefill-0 has 2 ranks"):
        assemble(plan, "1", "localhost", lambda stage: None)
