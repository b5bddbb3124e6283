"""Prefill of whole prompts against the rate of a large matrix product in the same run."""

from __future__ import annotations

from baton.engine.executor import DTYPES
from baton.engine.model_config import ModelConfig
from benchmarks.gpu.device import build_executor, build_model, prepare
from benchmarks.gpu.figures import EXPECTED, MATMUL, prefill_figures
from benchmarks.gpu.part import Part
from benchmarks.gpu.sequences import pages_for, prefilling
from benchmarks.gpu.sizes import label

ROUNDS = 7


def prefill_flops(config: ModelConfig, tokens: int) -> float:
    """The operations that a prompt requires.

    These are the blocks' matrices for each token, the head for the last token, and causal attention, which is half of
    the square.
    """
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tied_head else 2)
    blocks = 2 * (config.num_parameters - embeddings) * tokens
    head = 2 * config.vocab_size * config.hidden_size
    attention = 2 * tokens**2 * config.num_heads * config.head_dim * config.num_layers
    return float(blocks + head + attention)


def run(part: Part) -> None:
    """Measure the matrix rate, and prefill of every prompt length."""
    sizes, device = part.sizes, prepare(part.options.device)
    part.result.facts = device.facts()
    rate = 0.0

    def matmul() -> dict[str, float]:
        nonlocal rate
        rate = device.flops_per_s(sizes.matmul_size, DTYPES[sizes.dtype])
        return {MATMUL: rate / 1e12}

    if not part.step("the matrix rate", EXPECTED["prefill"](sizes), matmul):
        return
    part.say("building the model")
    config, parameters = build_model(sizes.model, sizes.dtype, device, part.options.seed)
    num_pages = 2 * pages_for(max(sizes.prompts) + 1, sizes.page_size)
    layout = config.page_layout(num_pages, sizes.page_size, sizes.dtype, "random")
    executor = build_executor(
        device, config, parameters, layout, sizes.max_batch, max(sizes.prompts), kernels=part.kernels
    )
    for prompt in sizes.prompts:

        def measure(prompt: int = prompt) -> dict[str, float]:
            (plan,) = prefilling(layout, config.vocab_size, prompt, part.options.seed)
            # Reading the token is part of the call, as for a client that waits for it.
            seconds = device.median_s(lambda: executor.execute(plan).tokens[0].token_id, ROUNDS)
            ratio = prefill_flops(config, prompt) / seconds / rate
            return dict(zip(prefill_figures(prompt), (ratio, prompt / seconds), strict=True))

        part.step(f"prompts of {label(prompt)}", prefill_figures(prompt), measure)
