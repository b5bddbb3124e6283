"""Tokens per second, TTFT and TPOT of a mixed worker, of a prefill and a decode worker, and of transformers.

All serve the same weights and requests, which arrive at once; transformers uses its continuous batching. Router and
workers are plain processes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from baton.config.process_config import RouterConfig, WorkerConfig
from baton.engine.model_config import ModelConfig
from baton.engine.weights import load_weights
from baton.harness.answer import answer
from baton.harness.process_cluster import ProcessCluster, plans
from baton.protocol.request import Request, SamplingParams
from benchmarks.gpu.checkpoint import written_checkpoint
from benchmarks.gpu.device import Device, build_model, prepare
from benchmarks.gpu.figures import LOADED, served_figures, served_ratio
from benchmarks.gpu.part import Part
from benchmarks.gpu.sequences import pages_for
from benchmarks.gpu.transformers_model import build_transformers

LAYOUTS: dict[str, Mapping[str, int]] = {"pd": {"prefill": 1, "decode": 1}, "mixed": {"mixed": 1}}
FRACTION = 0.7  # Share of the GPU's memory for all workers together: this process holds the weights, too.
WARM_UP_REQUESTS = 2


@dataclass(frozen=True, slots=True)
class Served:
    """The arrival times of each request's tokens, in seconds after all requests were sent."""

    moments: list[list[float]]

    def figures(self, name: str) -> dict[str, float]:
        """Tokens per second, median TTFT and mean TPOT; raises `RuntimeError` for requests without a token."""
        if not all(self.moments):
            raise RuntimeError(f"{sum(not times for times in self.moments)} requests received no token.")
        tokens = sum(map(len, self.moments))
        gaps = [(times[-1] - times[0]) / max(1, len(times) - 1) for times in self.moments]
        values = (
            tokens / max(times[-1] for times in self.moments),
            1000 * median(times[0] for times in self.moments),
            1000 * mean(gaps),
        )
        return dict(zip(served_figures(name), values, strict=True))


def run(part: Part) -> None:
    """Measure both layouts of workers, the loading of weights, and transformers."""
    sizes, device = part.sizes, prepare(part.options.device)
    part.result.facts = device.facts()
    part.say("building the model")
    config, parameters = build_model(sizes.model, sizes.dtype, device, part.options.seed)
    rng = random.Random(part.options.seed)
    prompts = [[rng.randrange(config.vocab_size) for _ in range(sizes.request_prompt)] for _ in range(sizes.requests)]
    if device.on_gpu:
        part.note(
            "Prefill and decode worker share one GPU, which runs one of them at a time: two GPUs would be faster."
        )
    part.say("writing a checkpoint for the workers")
    owed = [*(name for kind in LAYOUTS for name in served_figures(kind)), *LOADED]
    try:
        started = time.monotonic()
        with written_checkpoint(sizes.model, config, parameters, part.options.scratch) as folder:
            part.note(f"Writing the checkpoint to {folder.parent} took {time.monotonic() - started:.1f} s.")
            for name, pools in LAYOUTS.items():

                def serve(name: str = name, pools: Mapping[str, int] = pools) -> dict[str, float]:
                    return serve_workers(part, folder, pools, prompts).figures(name)

                part.step(f"router and {' + '.join(pools)} workers", served_figures(name), serve)
            part.step("loading the checkpoint again", LOADED, lambda: load_again(folder, config, parameters, device))
    except OSError as error:
        part.fail("writing a checkpoint", owed, error)
    part.step(
        "transformers' continuous batching",
        served_figures("transformers"),
        lambda: serve_transformers(part, config, parameters, prompts).figures("transformers"),
    )
    compare(part)


def load_again(
    folder: Path, config: ModelConfig, parameters: dict[str, torch.Tensor], device: Device
) -> dict[str, float]:
    """The rate of loading weights from cached files; raises `ValueError` when they differ from `parameters`."""
    dtype = parameters["embed"].dtype
    started = time.perf_counter()
    loaded = load_weights(folder, config, dtype, device.name)
    device.synchronize()
    seconds = time.perf_counter() - started
    wrong = [name for name, tensor in loaded.items() if not torch.equal(tensor, parameters[name])]
    if wrong:
        raise ValueError(f"{len(wrong)} loaded tensors differ from the written ones; the first is {wrong[0]}.")
    return {LOADED[0]: sum(tensor.numel() * tensor.element_size() for tensor in loaded.values()) / seconds / 1e9}


def compare(part: Part) -> None:
    """Add the ratios of the workers' rates to transformers', if both exist."""
    found = part.result.figures
    base = found.get("serving_transformers_tokens_per_s")
    for name in LAYOUTS:
        rate = found.get(f"serving_{name}_tokens_per_s")
        if base and rate:
            found[served_ratio(name)] = rate / base
        else:
            part.skip([served_ratio(name)], "one of the two rates is missing")
    part.save()


def serve_workers(part: Part, folder: Path, pools: Mapping[str, int], prompts: list[list[int]]) -> Served:
    """Serve the prompts with these pools.

    On a GPU each worker first gets a fraction of the memory. If that does not start, each gets a fixed number of pages.
    """
    router, worker = cluster_plans(part, folder)
    if part.options.on_gpu:
        share = worker.engine.changed(num_pages=0, gpu_memory_fraction=FRACTION / sum(pools.values()))
        shared = replace(worker, engine=share)
        try:
            return asyncio.run(serve_cluster(part, router, shared, pools, prompts))
        except (ChildProcessError, TimeoutError) as error:
            part.note(f"With a fraction of the GPU's memory {' + '.join(pools)} did not start: {error}")
    return asyncio.run(serve_cluster(part, router, worker, pools, prompts))


def cluster_plans(part: Part, folder: Path) -> tuple[RouterConfig, WorkerConfig]:
    """Configurations with pages for a full batch, and with a handoff of every request if there is a prefill worker."""
    sizes = part.sizes
    context = sizes.request_prompt + sizes.request_output + sizes.page_size
    num_pages = (sizes.max_batch + 2) * pages_for(context, sizes.page_size) + sizes.chunk_tokens // sizes.page_size
    router, worker = plans(
        folder, context, num_pages, policy="least_loaded", chunk_tokens=sizes.chunk_tokens, max_batch=sizes.max_batch
    )
    model = router.model.changed(dtype=sizes.dtype)
    engine = worker.engine.changed(device="cuda:0" if part.options.on_gpu else "cpu", checksum_every=0)
    return replace(router, model=model), replace(worker, model=model, engine=engine)


async def serve_cluster(
    part: Part, router: RouterConfig, worker: WorkerConfig, pools: Mapping[str, int], prompts: list[list[int]]
) -> Served:
    """Send all prompts at once through a gateway in this process to workers in their own processes."""
    sizes = part.sizes
    started = time.monotonic()
    async with ProcessCluster(router, worker, pools) as cluster:
        part.say(f"workers serve after {time.monotonic() - started:.1f} s")
        rng = random.Random(part.options.seed + 1)
        driver = cluster.gateway.driver
        for index in range(WARM_UP_REQUESTS):
            prompt = [rng.randrange(2400) for _ in range(sizes.request_prompt)]
            await answer(driver, request_of(f"warm{index}", prompt, sizes.request_output))
        sent = time.perf_counter()
        requests = [request_of(f"r{index}", prompt, sizes.request_output) for index, prompt in enumerate(prompts)]
        answers = await asyncio.gather(*(answer(driver, request) for request in requests))
        return Served([[moment - sent for moment in moments] for moments, _ in answers])


def request_of(name: str, prompt: list[int], output: int) -> Request:
    """A greedy request for exactly `output` tokens."""
    return Request(name, tuple(prompt), SamplingParams(max_tokens=output, ignore_eos=True, seed=0))


def serve_transformers(part: Part, model_config: ModelConfig, parameters: Any, prompts: list[list[int]]) -> Served:
    """`generate_batch` with the same limits of requests and of tokens per step; its warm-up is not counted.

    Raises `RuntimeError` when it fails with graphs and flash kernels as well as without.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    sizes = part.sizes
    model = build_transformers(sizes.model, model_config, parameters, part.options.device)
    model.set_attn_implementation("sdpa")
    generation = GenerationConfig(max_new_tokens=sizes.request_output, do_sample=False, eos_token_id=-1, pad_token_id=0)
    page = 256 if part.options.on_gpu else sizes.page_size
    per_request = pages_for(sizes.request_prompt + sizes.request_output, page) + 1
    batching: dict[str, Any] = {
        "page_size": page,
        "block_size": page,  # The name in earlier versions.
        "num_blocks": sizes.max_batch * per_request + sizes.max_batch,
        "max_batch_tokens": sizes.chunk_tokens,
        "max_requests_per_batch": sizes.max_batch,
    }
    plain = {"use_cuda_graph": False, "auto_switch_to_flash": False, "use_async_batching": False}
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    known -= {"block_size"} if "page_size" in known else set()
    reasons = []
    # The first try lets it choose graphs and flash kernels; the second try disables them.
    for options in (batching, batching | plain):
        config = ContinuousBatchingConfig(**{name: value for name, value in options.items() if name in known})
        try:
            outputs = model.generate_batch(prompts, generation, config, record_timestamps=True)
            return from_outputs(list(outputs.values()), len(prompts), sizes.request_output)
        except Exception as error:  # noqa: BLE001 - the next try may succeed
            reasons.append(f"{type(error).__name__}: {error}")
            part.say(f"transformers: {reasons[-1][:100]}")
    raise RuntimeError("; ".join(reasons))


def from_outputs(outputs: list[Any], wanted: int, tokens: int) -> Served:
    """transformers' recorded times, counted from the creation of the first request."""
    complete = [output for output in outputs if len(output.generated_tokens) == tokens]
    if len(complete) != wanted:
        raise RuntimeError(f"transformers answered {len(complete)} of {wanted} requests.")
    first = min(output.created_time for output in complete)
    return Served([[moment - first for moment in output.timestamps] for output in complete])
