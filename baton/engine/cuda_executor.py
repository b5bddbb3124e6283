"""Runs step plans on a GPU: attention from the table of backends, fused layers, recorded steps.

No call waits for the device within a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from baton.engine.attention.backend import BatchLayout
from baton.engine.attention.device_backend import DeviceAttention, Recording
from baton.engine.attention.device_backends import device_backend
from baton.engine.attention.plan_metadata import PlanMetadata, plan_metadata
from baton.engine.cuda_device import check_kernels, check_pages
from baton.engine.decode_graphs import DecodeGraphs
from baton.engine.graph_sizes import graph_sizes
from baton.engine.model_config import ModelConfig
from baton.engine.models.decoder import Decoder
from baton.engine.prompt_scores import ScoresOnDevice, follow_scores, read_scores, score_on_device
from baton.engine.ranks import ONE_RANK, Ranks
from baton.engine.sampler import SampledOnDevice, read, sample_on_device
from baton.engine.staging import GrowingStagingBuffer
from baton.engine.step import StepPlan, StepResult
from baton.engine.step_arrays import StepArrays, step_arrays
from baton.engine.storage import head_checksums, page_checksum, page_dtype
from baton.engine.warm_up import warm_up
from baton.protocol.worker import PageLayout

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """Options of the computation; they change results only by rounding."""

    cuda_graphs: bool = True  # Record decode steps; those of several ranks are never recorded.
    attention: str = "fa2"  # Prefill kernels: "fa2", or "fa3" on Hopper.
    max_batch: int = 256  # Most sequences of a decode step.
    max_tokens: int = 8192  # Tokens of the largest step; sizes the first staging buffer.

    def records(self, ranks: Ranks) -> bool:
        """Whether decode steps are recorded, where the attention backend can."""
        return self.cuda_graphs and ranks.num_ranks == 1


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A launched step: its tokens are in host memory once the event has completed."""

    drawn: SampledOnDevice | None  # None on a follower, which samples nothing
    scores: tuple[ScoresOnDevice, ...]
    ended: torch.cuda.Event | None


class CudaExecutor:
    """`Executor` on the device of `parameters`, on one rank of a worker: rank 0 launches each step, the others follow.

    `pages` is the storage `[num_pages, kv_heads, num_layers, 2, page_size, head_dim]` that transfers read and write,
    with this rank's heads only; `layout` is the whole worker's. One more page is allocated behind it, for the padding
    of recorded steps; no pool may contain it.

    Without FlashInfer kernels for its elements or heads (float32; heads of 32), attention uses torch, unrecorded.
    """

    async_execution = True

    def __init__(
        self,
        config: ModelConfig,
        parameters: dict[str, torch.Tensor],
        layout: PageLayout,
        options: CudaOptions,
        progress: Progress | None = None,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        """`progress` receives (recorded decode steps, total)."""
        dtype = page_dtype(layout, parameters)
        self.device = device = parameters["embed"].device
        self.config = config
        self.layout = layout
        self.ranks = ranks
        own = config.slice(ranks.num_ranks, ranks.rank)
        shape = replace(layout, num_pages=layout.num_pages + 1, num_kv_heads=own.num_kv_heads).shape
        storage = torch.zeros(shape, dtype=dtype, device=device)
        self.pages = storage[: layout.num_pages]
        if device.type == "cuda":
            check_pages(self.pages)
        self.model = Decoder(config, parameters, ranks)
        self._staging = GrowingStagingBuffer(device, 3 * options.max_tokens + (1 << 16))
        self._graphs: DecodeGraphs | None = None
        if device.type == "cuda":
            check_kernels(options.attention, torch.cuda.get_device_capability(device))
        backend = device_backend(dtype, layout.head_dim)
        attention = backend.open(storage, own.num_heads, options.attention, options.max_batch)
        self._attention: DeviceAttention = attention
        if options.records(ranks) and backend.record is not None and self.model.recordable:
            self._graphs = self._record(backend.record(attention), options.max_batch, progress)

    @torch.inference_mode()
    def _record(self, recording: Recording, max_batch: int, progress: Progress | None) -> DecodeGraphs:
        pages_per_sequence = -(-self.config.context_tokens // self.layout.page_size)
        padding_page = self.layout.num_pages
        sizes = graph_sizes(max_batch)
        return DecodeGraphs(self.model, recording, sizes, pages_per_sequence, padding_page, progress)

    def execute(self, plan: StepPlan) -> StepResult:
        return self.collect(self.launch(plan))

    @torch.inference_mode()
    def launch(self, plan: StepPlan, arrays: StepArrays | None = None) -> LaunchedStep:
        """Queue the step and the copy of its tokens to the host. `arrays` are the plan's, if they exist.

        The previous step must have been collected, because its arrays are overwritten.
        """
        arrays = arrays or step_arrays(plan, self.layout.page_size)
        hidden, logits = self._compute(arrays)
        scores = score_on_device(self.model, hidden, arrays.scored, plan) if arrays.scored else ()
        drawn = sample_on_device(logits, plan.sampling, self.config.eos_token_ids).fetch()
        fetched = tuple(item.fetch() for item in scores)
        return LaunchedStep(drawn, fetched, self._ended())

    @torch.inference_mode()
    def follow(self, arrays: StepArrays) -> LaunchedStep:
        """Queue this rank's share of a step that rank 0 launches. The next one may be queued when it is `done`."""
        hidden, _ = self._compute(arrays)
        follow_scores(self.model, hidden, arrays.scored)
        return LaunchedStep(None, (), self._ended())

    def _ended(self) -> torch.cuda.Event | None:
        """An event that completes with what has been queued so far."""
        if self.device.type != "cuda":
            return None
        ended = torch.cuda.Event()
        ended.record(torch.cuda.current_stream(self.device))
        return ended

    def done(self, launched: LaunchedStep) -> bool:
        return launched.ended is None or launched.ended.query()

    def collect(self, launched: LaunchedStep) -> StepResult:
        """Wait until the device has finished the step, including its KV, and read its tokens.

        A transport's writes are not ordered with our stream, so they may read the step's pages only from here on.
        """
        if launched.ended is not None:
            launched.ended.synchronize()
        assert launched.drawn is not None
        return StepResult(read(launched.drawn), read_scores(launched.scores))

    def _compute(self, arrays: StepArrays) -> tuple[torch.Tensor, torch.Tensor]:
        """The last layer's output for every token (nothing for a recorded step), and the logits of the sampled rows."""
        token_ids, rows, layout = arrays.tensors()
        if self._graphs is not None and arrays.only_decodes:
            logits = self._graphs.logits(token_ids, layout)
            if logits is not None:
                return logits[:0], logits
        tokens, sampled, metadata = self._stage(token_ids, rows, layout)
        hidden = self.model.hidden(tokens, metadata.positions, self._attention)
        return hidden, self.model.logits(hidden[sampled])

    def _stage(
        self, token_ids: torch.Tensor, rows: torch.Tensor, layout: BatchLayout
    ) -> tuple[torch.Tensor, torch.Tensor, PlanMetadata]:
        """Copy a step's arrays to the device and plan its attention.

        Returns (token ids, sampled rows, metadata) on the device.
        """
        host, device = self._staging.put([token_ids, rows, *plan_metadata(layout).tensors])
        there = PlanMetadata.of(device[2:])
        self._attention.plan_staged(layout, PlanMetadata.of(host[2:]), there)
        return device[0], device[1], there

    def page_checksum(self, page: int) -> int:
        """Of a page of a worker of one rank."""
        return page_checksum(self.head_checksums(page))

    def head_checksums(self, page: int) -> list[int]:
        """CRC-32 of the page's bytes of each of this rank's KV heads."""
        return head_checksums(self.pages, page)

    def warm_up(self) -> None:
        """Make the slow first calls; every rank calls it."""
        warm_up(self, self.config.context_tokens)
