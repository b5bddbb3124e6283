"""What a worker's process is like once its worker has been built."""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
from dataclasses import replace
from multiprocessing.connection import Connection

from baton.builtin_model import CHECKPOINT
from baton.harness.process_cluster import plans
from baton.worker.build import assemble


def _objects_left_to_collections(told: Connection) -> None:
    """The numbers of (objects that a full collection looks at, objects that it leaves out)."""
    plan = replace(plans(CHECKPOINT, 64, 16)[1], name="prefill-0", role="prefill", router_address="tcp://127.0.0.1:9")
    assemble(plan, "1", "localhost", lambda stage: None)
    told.send((len(gc.get_objects()), gc.get_freeze_count()))
    told.close()
    os._exit(0)  # nothing here has to be closed


def test_what_start_up_has_left_is_not_looked_at_by_collections_between_steps() -> None:
    ours, theirs = mp.Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=_objects_left_to_collections, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        looked_at, left_out = ours.recv()
    finally:
        process.kill()
        process.join()
    assert looked_at < left_out / 10
