"""The GPU's executor: the CPU's tokens, recorded steps equal to unrecorded ones, and measured memory that suffices."""

from __future__ import annotations

import pytest
import torch

from baton.builtin_model import CHECKPOINT
from baton.engine.checkpoint import read_config
from baton.engine.cuda_executor import CudaExecutor, CudaOptions
from baton.engine.device_memory import pages_that_fit
from baton.engine.executor import TorchExecutor
from baton.engine.memory_profile import measure
from baton.engine.model_config import ModelConfig, model_config
from baton.engine.weights import load_weights
from baton.harness.random_weights import random_weights
from baton.protocol.request import SamplingParams
from tests.engine.running import generate
from tests.engine.test_cuda_executor_on_cpu import PROMPTS, SAMPLING
from tests.gpu.cases import SMALL


def _small(device: torch.device, dtype: torch.dtype) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    config = model_config(SMALL)
    parameters = random_weights(config, torch.float32, "cpu", 1)
    return config, {name: value.to(device, dtype) for name, value in parameters.items()}


def test_tokens_are_the_cpus_in_float32(device: torch.device) -> None:
    config = read_config(CHECKPOINT)
    layout = config.page_layout(64, 16, "float32", "m")
    expected = generate(
        TorchExecutor(config, load_weights(CHECKPOINT, config, torch.float32), layout), PROMPTS, SAMPLING
    )
    weights = load_weights(CHECKPOINT, config, torch.float32, str(device))
    assert generate(CudaExecutor(config, weights, layout, CudaOptions()), PROMPTS, SAMPLING) == expected


def test_weights_on_the_gpu_are_the_checkpoints(device: torch.device) -> None:
    config = read_config(CHECKPOINT)
    here = load_weights(CHECKPOINT, config, torch.bfloat16)
    there = load_weights(CHECKPOINT, config, torch.bfloat16, str(device))
    for name, value in here.items():
        assert torch.equal(there[name].cpu(), value), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_recorded_step_equals_the_unrecorded_step(device: torch.device, dtype: str) -> None:
    """Batches of 1 to 4 with graph sizes 1, 2 and 3: exact, padded and too large."""
    config, parameters = _small(device, getattr(torch, dtype))
    layout = config.page_layout(64, 16, dtype, "m")
    progress: list[tuple[int, int]] = []
    recorded = CudaExecutor(config, parameters, layout, CudaOptions(max_batch=3), lambda *done: progress.append(done))
    plain = CudaExecutor(config, parameters, layout, CudaOptions(cuda_graphs=False, max_batch=3))
    recorded.warm_up()
    assert progress == [(1, 3), (2, 3), (3, 3)]
    greedy = [SamplingParams(max_tokens=1 + index) for index in range(4)]
    one, other = (generate(executor, PROMPTS, greedy) for executor in (recorded, plain))
    # The same kernels may split a sequence's keys differently when captured, so equal logits are not promised.
    agreeing = sum(a == b for first, second in zip(one, other, strict=True) for a, b in zip(first, second, strict=True))
    assert agreeing >= 9  # of 10


def test_two_alternating_graphs_do_not_disturb_each_other(device: torch.device) -> None:
    config, parameters = _small(device, torch.bfloat16)
    layout = config.page_layout(64, 16, "bfloat16", "m")
    executor = CudaExecutor(config, parameters, layout, CudaOptions(max_batch=4))
    sampling = [SamplingParams(max_tokens=count) for count in (12, 3, 7, 5)]
    assert generate(executor, PROMPTS, sampling) == generate(executor, PROMPTS, sampling)


def test_the_measured_memory_suffices(device: torch.device) -> None:
    config, parameters = _small(device, torch.bfloat16)
    layout = config.page_layout(1, 16, "bfloat16", "m")
    options = CudaOptions(max_batch=8, max_tokens=512)
    memory = measure(config, parameters, layout, options, 4)
    assert memory.step_peak > 0
    assert memory.own <= memory.total
    assert memory.free <= memory.total
    pages = pages_that_fit(memory, 0.2, layout.page_bytes, 9)
    executor = CudaExecutor(config, parameters, config.page_layout(pages, 16, "bfloat16", "m"), options)
    generate(executor, PROMPTS, SAMPLING, chunk_tokens=512)
    assert torch.cuda.memory_allocated(device) <= 0.2 * memory.total


def test_pages_hold_the_step_once_it_is_collected(device: torch.device) -> None:
    """Read on another stream, as a transport does, without waiting for the executor's stream."""
    config, parameters = _small(device, torch.bfloat16)
    layout = config.page_layout(64, 16, "bfloat16", "m")
    executor = CudaExecutor(config, parameters, layout, CudaOptions(cuda_graphs=False))
    generate(executor, PROMPTS, [SamplingParams(max_tokens=1)] * 4)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        copied = executor.pages.clone()
    torch.cuda.synchronize(device)
    assert torch.equal(copied, executor.pages)
