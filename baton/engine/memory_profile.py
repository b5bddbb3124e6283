"""Measures the memory left for pages: runs the largest step once, without pages, and reads its peak."""

from __future__ import annotations

from dataclasses import replace

import torch

from baton.engine.attention.device_backends import device_backend
from baton.engine.cuda_executor import CudaOptions
from baton.engine.device_memory import DeviceMemory
from baton.engine.model_config import ModelConfig
from baton.engine.models.decoder import Decoder
from baton.engine.ranks import ONE_RANK, Ranks
from baton.engine.sampler import read, sample_on_device
from baton.engine.sequence import Sequence
from baton.protocol.request import MAX_LOGPROBS, Request, SamplingParams
from baton.protocol.worker import PageLayout

_WRAPPER_BYTES = 16 << 20  # Plans of the two attention wrappers.
# Bytes that each layer of a recorded step keeps: on an H200 a step of 32 layers kept 5.6 MiB, the mean of 35 steps.
_GRAPH_SHARE = 256 << 10


class _NoKeys:
    """Attention without KV: only a step's other tensors are measured."""

    def run(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.zeros(q.shape, dtype=q.dtype, device=q.device)


@torch.inference_mode()
def measure(
    config: ModelConfig,
    parameters: dict[str, torch.Tensor],
    layout: PageLayout,
    options: CudaOptions,
    graphs: int,
    ranks: Ranks = ONE_RANK,
) -> DeviceMemory:
    """Memory of the parameters' GPU after a step of `max_tokens` tokens in which `max_batch` sequences sample.

    `layout` is the whole worker's; `graphs` is the number of steps that are going to be recorded. Every rank calls it.
    """
    device = parameters["embed"].device
    model = Decoder(config, parameters, ranks)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _largest_step(model, options, device)
    torch.cuda.synchronize(device)
    step_peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    workspace = _WRAPPER_BYTES
    backend = device_backend(parameters["embed"].dtype, layout.head_dim)
    sliced = config.slice(ranks.num_ranks, ranks.rank)
    own_layout = replace(layout, num_kv_heads=sliced.num_kv_heads)
    workspace += backend.workspace_bytes(device, options.max_batch, sliced.num_heads, own_layout)
    if options.records(ranks) and backend.record is not None and model.recordable:
        # The pool of recorded steps takes as much as one eager step of that batch, permanently.
        workspace += _decode_peak(model, options.max_batch, device) + graphs * config.num_layers * _GRAPH_SHARE
    return DeviceMemory(total=total, free=free, own=own, step_peak=step_peak, workspace=workspace)


def _largest_step(model: Decoder, options: CudaOptions, device: torch.device) -> None:
    count, batch = options.max_tokens, min(options.max_batch, options.max_tokens)
    positions = torch.arange(count, device=device, dtype=torch.int32) % model.config.context_tokens
    tokens = torch.zeros(count, device=device, dtype=torch.int32)
    logits = model.forward(tokens, positions, positions[:batch] * 0, _NoKeys())
    # The most memory in sampling: buffers of the draw, and a row's log-probabilities.
    sampling = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, seed=1, logprobs=MAX_LOGPROBS)
    # Reading on the device waits for the tokens; fetched ones would be in host memory only after an event.
    read(sample_on_device(logits, [Sequence.start(Request("profile", (0,), sampling))] * batch, frozenset()))


def _decode_peak(model: Decoder, batch: int, device: torch.device) -> int:
    """Peak bytes of a step of `batch` tokens with the logits of all of them."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    zeros = torch.zeros(batch, device=device, dtype=torch.int32)
    model.forward(zeros, zeros, None, _NoKeys())
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
