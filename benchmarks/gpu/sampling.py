"""Sampling: its time in a step, and whether the GPU draws the same tokens as the CPU."""

from __future__ import annotations

from statistics import median

import torch

from baton.engine.sampler import sample_on_device
from baton.harness.sampling_check import sampled, tokens_equal_to_cpu
from baton.protocol.request import SamplingParams
from benchmarks.gpu.device import Device, prepare
from benchmarks.gpu.figures import SAMPLED_EQUAL, SAMPLED_KINDS, sampling_figure
from benchmarks.gpu.part import Part

PARAMS = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=1.0),
    "top_p": SamplingParams(temperature=1.0, top_p=0.9),
    "top_k": SamplingParams(temperature=1.0, top_k=50),
    "top_k_top_p": SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
    "top_p_flat": SamplingParams(temperature=1.0, top_p=0.9),
}
SPREAD, FLAT_SPREAD = 3.0, 0.5  # Standard deviations of logits: 0.9 of the mass is on hundreds of tokens, or on most.
ROUNDS = 5


def run(part: Part) -> None:
    """Compare tokens with the CPU's, and measure every kind of sampling."""
    sizes, device = part.sizes, prepare(part.options.device)
    part.result.facts = device.facts()
    vocab = sizes.model["vocab_size"]

    def equal() -> dict[str, float]:
        return {SAMPLED_EQUAL: tokens_equal_to_cpu(device.name, sizes.sampled_rows, vocab, part.options.seed)}

    part.step(f"the CPU's tokens, {sizes.sampled_rows} rows", [SAMPLED_EQUAL], equal)
    for batch in sizes.sampled_batches:
        for kind in SAMPLED_KINDS:

            def measure(kind: str = kind, batch: int = batch) -> dict[str, float]:
                device_ms, host_ms = sampling_ms(device, kind, batch, vocab)
                part.note(f"{kind}, batch {batch}: the host takes {host_ms:.3f} ms")
                return {sampling_figure(kind, batch): device_ms}

            part.step(f"{kind}, batch {batch}", [sampling_figure(kind, batch)], measure)


def sampling_ms(device: Device, kind: str, batch: int, vocab: int) -> tuple[float, float]:
    """Milliseconds of choosing a token for each row: (on the device, on the host until the work is queued).

    A GPU is kept busy until the host has queued a whole round, so that it never waits for the host. On a CPU both
    times are the same.
    """
    spread = FLAT_SPREAD if kind.endswith("flat") else SPREAD
    logits = torch.empty(batch, vocab, device=device.name).normal_(0.0, spread)
    sequences = [sampled(PARAMS[kind], row) for row in range(batch)]
    if not device.on_gpu:
        milliseconds = 1000 * device.median_s(lambda: sample_on_device(logits, sequences, frozenset()), ROUNDS)
        return milliseconds, milliseconds
    host_ms = 1000 * device.median_s(lambda: sample_on_device(logits, sequences, frozenset()), ROUNDS)
    calls = 10
    taken = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(2e9 * 2e-3 * calls))  # Clock ticks of about 2 ms per call.
        begin.record()
        for _ in range(calls):
            sample_on_device(logits, sequences, frozenset())
        end.record()
        device.synchronize()
        taken.append(begin.elapsed_time(end) / calls)
    return median(taken), host_ms
