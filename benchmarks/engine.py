"""The engine of one mixed worker against transformers on the same random weights, and against the machine's own limits.

64 requests of 256 random prompt tokens, 64 new tokens each, at most 16 at once, 2 threads, a Llama of 30 million
parameters. The limits are the same matrices multiplied and nothing else.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.report import Goal, Report, arguments, median_ratio, progress
from cluster.messages import Prefill
from cluster.request import Request, SamplingParams
from cluster.worker import RoleName
from decode_worker.role import DecodeRole
from deploy.machine import machine_facts
from engine.batch import StepBudget
from engine.checkpoint_tensors import checkpoint_targets
from engine.executor import DTYPES, TorchExecutor
from engine.kv_pages import PagePool
from engine.model_config import ModelConfig, model_config
from engine.sequence import Sequence
from engine.step import Slice, StepPlan
from engine.weights import random_weights
from worker.role import Send
from worker.state import WorkerState

GOALS = {
    "ratio_to_generate_batch": Goal(4.0),
    "ratio_to_static_generate": Goal(1.0),
    "prefill_ratio_to_matmul": Goal(0.7),
    "decode_ratio_to_linear": Goal(0.6),
}
SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "eos_token_id": None,
}
PAGE_SIZE, CHUNK_TOKENS, BATCH, PROMPT_TOKENS = 16, 512, 16, 256


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of every engine."""

    prompts: list[list[int]]
    new_tokens: int


def build_executor(config: ModelConfig, parameters: dict[str, torch.Tensor], dtype: str) -> TorchExecutor:
    return TorchExecutor(config, parameters, config.page_layout(800, PAGE_SIZE, dtype, "random"))


def build_reference(config: ModelConfig, parameters: dict[str, torch.Tensor]) -> Any:
    """transformers' model with copies of our weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    options = {key: value for key, value in SHAPE.items() if key != "architectures"}
    dtype = parameters["embed"].dtype
    model: Any = LlamaForCausalLM(LlamaConfig(**options, bos_token_id=None, pad_token_id=0))
    model = model.to(dtype).eval()
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, target in checkpoint_targets(config).items():
            theirs[name].copy_(parameters[target.parameter][target.start : target.start + target.shape[0]])
    return model


@dataclass(frozen=True, slots=True)
class Run:
    """Output tokens per second, and mean latencies."""

    tokens_per_s: float
    ttft_s: float
    tpot_s: float


def run_baton(executor: TorchExecutor, load: Load) -> Run:
    """One mixed worker's role over the executor; a new request as soon as one ends."""
    pool = PagePool(executor.layout.num_pages, PAGE_SIZE)
    budget = StepBudget(CHUNK_TOKENS, BATCH)
    state = WorkerState("benchmark", "random", frozenset(), executor.config.context_tokens, budget, pool)
    role = DecodeRole(state, RoleName.MIXED)
    sampling = SamplingParams(max_tokens=load.new_tokens, ignore_eos=True)
    waiting = [Request(str(index), tuple(prompt), sampling) for index, prompt in enumerate(load.prompts)]
    arrived: dict[str, float] = {}
    moments: dict[str, list[float]] = {}
    live = 0
    started = time.perf_counter()
    while waiting or live:
        while waiting and live < BATCH:
            request = waiting.pop(0)
            arrived[request.request_id] = time.perf_counter()
            role.on_message(Prefill(request, (), False, 0), 0.0)
            live += 1
        _, plan = role.plan(0.0)
        assert plan is not None
        commands = role.absorb(plan, executor.execute(plan), 0.0)
        now = time.perf_counter()
        for command in commands:
            assert isinstance(command, Send)
            for token in command.message.tokens:  # type: ignore[union-attr]
                moments.setdefault(token.request_id, []).append(now)
                live -= token.finish is not None
    seconds = time.perf_counter() - started
    return Run(
        sum(map(len, moments.values())) / seconds,
        mean(times[0] - arrived[name] for name, times in moments.items()),
        mean((times[-1] - times[0]) / max(1, len(times) - 1) for times in moments.values()),
    )


def run_generate_batch(model: Any, load: Load) -> float:
    """transformers' continuous batching; tokens per second."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model.set_attn_implementation("sdpa")
    generation = GenerationConfig(max_new_tokens=load.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(
        page_size=PAGE_SIZE, num_blocks=800, max_batch_tokens=CHUNK_TOKENS, max_requests_per_batch=BATCH
    )
    started = time.perf_counter()
    outputs = model.generate_batch(load.prompts, generation, batching)
    seconds = time.perf_counter() - started
    return sum(len(output.generated_tokens) for output in outputs.values()) / seconds


def run_static(model: Any, load: Load) -> float:
    """Plain `generate` on batches of 16; tokens per second."""
    model.set_attn_implementation("sdpa")
    started = time.perf_counter()
    for first in range(0, len(load.prompts), BATCH):
        batch = torch.tensor(load.prompts[first : first + BATCH])
        model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            max_new_tokens=load.new_tokens,
            min_new_tokens=load.new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return len(load.prompts) * load.new_tokens / (time.perf_counter() - started)


def timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@torch.inference_mode()
def prefill_ratio(executor: TorchExecutor, repeats: int) -> float:
    """Time of the bare matrix products of a 512-token chunk over the time of the whole prefill step."""
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
    """Time of every matrix applied once to 16 rows over the time of a decode step of 16 sequences."""
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
    """A slice of a made-up sequence with pages of its own."""
    total = start + count
    prompt = (7,) * (total - 1 if count == 1 else total)
    sequence = Sequence.start(Request(str(index), prompt, SamplingParams()), (7,) if count == 1 else ())
    pages = -(-total // PAGE_SIZE)
    sequence.page_table = [(index * pages + page) % executor.layout.num_pages for page in range(pages)]
    sequence.computed = start
    return Slice(sequence, start, count, True)


def main() -> None:
    parser = arguments(__doc__, "python -m benchmarks.engine --quick --json engine.json")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    args = parser.parse_args()
    dtype = args.dtype
    if dtype == "auto":
        dtype = "bfloat16" if machine_facts().fast_bfloat16 else "float32"
    torch.set_num_threads(2)
    config = model_config(SHAPE)
    rng = random.Random(args.seed)
    count, new_tokens = (16, 16) if args.quick else (64, 64)
    load = Load([[rng.randrange(8192) for _ in range(PROMPT_TOKENS)] for _ in range(count)], new_tokens)
    report = Report("engine", GOALS)
    with progress(7) as step:
        step("building the model")
        parameters = random_weights(config, DTYPES[dtype], "cpu", seed=0)
        model = build_reference(config, parameters)
        # The peers run before our executor is built: it tunes the process's allocator, which would help them too.
        step("transformers generate, batches of 16")
        static = run_static(model, load)
        step("transformers generate_batch")
        continuous = run_generate_batch(model, load)
        executor = build_executor(config, parameters, dtype)
        step("limits")
        repeats = 15 if args.quick else 60
        report.figures["prefill_ratio_to_matmul"] = prefill_ratio(executor, repeats // 3)
        report.figures["decode_ratio_to_linear"] = decode_ratio(executor, repeats)
        step("baton")
        first = run_baton(executor, load)
        step("baton again")
        second = run_baton(executor, load)
        step("generate_batch in the tuned process")
        tuned = run_generate_batch(model, load)
    rate = (first.tokens_per_s + second.tokens_per_s) / 2
    report.figures |= {
        "ratio_to_generate_batch": rate / continuous,
        "ratio_to_static_generate": rate / static,
        "tokens_per_s": rate,
        "ttft_ms": 500 * (first.ttft_s + second.ttft_s),
        "tpot_ms": 500 * (first.tpot_s + second.tpot_s),
        "generate_batch_tokens_per_s": continuous,
        "generate_batch_tuned_tokens_per_s": tuned,
        "static_generate_tokens_per_s": static,
    }
    report.setting = {"requests": count, "new_tokens": new_tokens, "dtype": dtype, "threads": 2, "seed": args.seed}
    report.publish(args.json)


if __name__ == "__main__":
    main()
