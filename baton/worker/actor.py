"""The Ray actor that holds one worker process: it builds engine, transport and role, and runs the loop in a thread."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from typing import TYPE_CHECKING, Any

import ray

from baton.config.process_config import WorkerConfig
from baton.config.ray_names import FIRST_WORDS
from baton.logs import log, set_up
from baton.worker.rank_actor import rank_starter

if TYPE_CHECKING:
    from baton.worker.loop import WorkerLoop


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=8)  # type: ignore[call-overload]
class WorkerActor:
    """One worker, or its first rank, which starts the others with `rank_options`. Loading may take long; `stage`
    reports its progress.

    Ray restarts a process that died; the worker then joins under a new incarnation, with new processes of all ranks.
    """

    def __init__(self, plan: WorkerConfig, rank_options: dict[str, Any]) -> None:
        set_up(plan.name, plan.logging.level, FIRST_WORDS.format(plan.name), plan.logging.format)
        self._plan = plan
        self._rank_options = rank_options
        self._stage = "starting"
        self._error = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=plan.name, daemon=True)
        self._loaded = threading.Event()
        self._loop: WorkerLoop | None = None
        self._thread.start()

    def stage(self) -> str:
        """What the worker is doing, for a progress line."""
        return self._stage

    def wait_loaded(self) -> str:
        """Block until the worker serves; returns an error sentence, or an empty string."""
        self._loaded.wait()
        return self._error

    def ended(self) -> None:
        """Block until the loop has ended; if the process ends, the call fails."""
        self._ended.wait()

    def stop(self) -> None:
        """Send a goodbye to the router and close; returns when the loop has ended, or at once if there is none yet."""
        if self._loop is not None:
            self._loop.stop()
            self._ended.wait(timeout=10)

    def _run(self) -> None:
        try:
            from baton.worker.build import assemble

            incarnation = uuid.uuid4().hex[:8]
            start_rank = rank_starter(self._rank_options)
            loop = self._loop = assemble(self._plan, incarnation, socket.gethostname(), self._tell, start_rank)
            self._stage = "serving"
            self._loaded.set()
            loop.run()
            self._stage = "stopped"
        except Exception as error:
            log.exception("An error ended the worker.")
            self._error = str(error) or type(error).__name__
            self._stage = "failed"
        finally:
            self._loaded.set()
            self._ended.set()
            if self._stage == "failed" and self._loop is not None:
                os._exit(1)  # a worker whose loop died must not look alive

    def _tell(self, stage: str) -> None:
        self._stage = stage
